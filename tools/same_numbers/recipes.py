"""What is recorded, as settings: the runs, the plans, and the options of commands."""

# The configuration of the demo, with as many updates as its few slides are enough for.
CONFIG = """\
result_dir: results
seed: 0
engine: streaming
data:
  classes: [normal, adenocarcinoma]
  train: data/train.csv
  val: data/val.csv
  test: data/test.csv
  slides: data/slides
  mpp: 2.0
  canvas: 256
model:
  backbone: tiny
  pooling: gmp
streaming:
  window: 256
train:
  optimizer: adam
  learning_rate: 5.0e-4
  epochs: 1
  updates_per_epoch: 20
  batch_size: 2
"""
SYNTHESIS = (
    "--classes normal adenocarcinoma --train 20 --val 4 --test 6 --size 512 --mpp 1.0 --tissue 0.4 0.7 "
    "--lesion 0.5 0.8 --seed 0"
)

_UNIFIED = "engine=unified unified.strip_mb=0.3 unified.group_mb=1.5"
_WINDOWS = "data.mpp=1.0 data.canvas=[437,450]"
_FEW = "train.updates_per_epoch=6"
_FOUR_EPOCHS = (
    "train.optimizer=adamw train.learning_rate=2.0e-3 train.min_learning_rate=1.0e-5 train.reduce_patience=1 "
    "train.on_plateau=rollback train.updates_per_epoch=5 train.epochs=4 augment.preset="
)
# What is trained, by name: the keys that differ from the configuration above.
TRAININGS = {
    "streaming": "",
    "direct": "engine=direct",
    "unified": _UNIFIED,
    "unified-recompute": _UNIFIED + " unified.device_gb=0.009",
    "unified-spill": _UNIFIED + " unified.device_gb=0.006 unified.spill_dir=spilled",
    "windows": _WINDOWS + " streaming.window=96",
    "windows-gap-sigmoid": _WINDOWS + " streaming.window=64 model.pooling=gap model.activation=sigmoid " + _FEW,
    "windows-float64": _WINDOWS + " streaming.window=128 model.compute=float64 " + _FEW,
    "windows-bfloat16": _WINDOWS + " streaming.window=128 model.compute=bfloat16 " + _FEW,
    "windows-float16": _WINDOWS + " streaming.window=128 model.compute=float16 " + _FEW,
    "unified-float16": _UNIFIED + " model.compute=float16 " + _FEW,
    "resnet18": _WINDOWS + " streaming.window=128 model.backbone=resnet18 train.updates_per_epoch=3",
    "augmented": _FOUR_EPOCHS + "paper_2021",
    "augmented-windows": _WINDOWS + " streaming.window=96 augment.preset=paper_2022 " + _FEW,
    "augmented-direct": "engine=direct augment.preset=reference_2021 " + _FEW,
}
INTERRUPTED = "augmented"  # what is interrupted, and what an earlier checkout began
DRAWN = ("windows", "windows-gap-sigmoid", "unified")  # of these heat maps, and of the first by ``test``
CONTOUR = "0.6"  # probability at which the contours of these lie

# A project as the implementation published with the paper of 2021 has it.
REFERENCE_CONFIG = """\
RESULT_DIR: "result"
MODEL_PATH: "${RESULT_DIR}/model.h5"
CONFIG_RECORD_PATH: "${RESULT_DIR}/config_record.yaml"
LOAD_MODEL_BEFORE_TRAIN: False
USE_MIXED_PRECISION: False
USE_HMS: False
USE_MIL: False
TRAIN_CSV_PATH: "train.csv"
VAL_CSV_PATH: "val.csv"
TEST_CSV_PATH: "test.csv"
SLIDE_DIR: "../data/slides/"
SLIDE_FILE_EXTENSION: ".tiff"
SLIDE_READER: "openslide"
RESIZE_RATIO: 0.5
INPUT_SIZE: [256, 300, 3]
MODEL: "tiny"
NUM_CLASSES: 2
BATCH_SIZE: 1
EPOCHS: 2
NUM_UPDATES_PER_EPOCH: 3
INIT_LEARNING_RATE: 0.001
POOL_USE: "gmp"
REDUCE_LR_FACTOR: 0.1
REDUCE_LR_PATIENCE: 24
TEST_RESULT_PATH: "${RESULT_DIR}/test_result.json"
ENABLE_VIZ: True
VIZ_SIZE: [100, 120]
VIZ_FOLDER: "${RESULT_DIR}/viz"
"""

PLAN_CONFIG = """\
result_dir: results
data:
  classes: [normal, adenocarcinoma, squamous]
  mpp: 2.0
  canvas: [1536, 1400]
model:
  backbone: fixup_resnet50
streaming:
  window: 512
train:
  batch_size: 8
"""
# All rates are given, so that nothing is measured.
_HOST = "--device host --host-memory 64GB --memory-rate 1e10 --float32-flops 1e11 --half-flops 1e11"
_CRAMPED = "--device V100-32GB --device-memory 1500MB --host-memory 20GB"
# What is planned, by name: options of ``plan``.
PLANS = {
    "gpus": "--device V100-32GB --device T4 --host-memory 768GB",
    "gpu-cramped": _CRAMPED,
    "gpu-cramped-tissue": _CRAMPED + " --tissue 0.3 --set streaming.window=256",
    "gpu-cramped-predict": _CRAMPED + " --predict",
    "gpu-configured": _CRAMPED + " --set unified.device_gb=1.2 --set unified.group_mb=200",
    "gpu-float64": "--device A100-40GB --host-memory 256GB --set model.compute=float64 --set data.canvas=1024",
    "gpu-bfloat16": "--device T4 --device H100-80GB --host-memory 256GB --set model.compute=bfloat16",
    "host": _HOST,
    "host-predict": _HOST + " --predict",
    "host-float64": _HOST + " --set model.compute=float64",
    "host-budget": _HOST + " --set unified.device_gb=3.4 --set unified.group_mb=800",
    "host-spill": _HOST + " --set unified.device_gb=2.0 --set unified.group_mb=500 --set unified.spill_dir=spilled",
    "host-tiny": _HOST + " --set model.backbone=tiny --set unified.strip_mb=4 --set unified.group_mb=40",
    "host-resnet18": _HOST + " --set model.backbone=resnet18 --set model.pooling=gap",
    "host-resnet50": _HOST + " --set model.backbone=resnet50 --tissue 0.25",
    "host-fixup_resnet34": _HOST + " --set model.backbone=fixup_resnet34 --set data.canvas=1100",
    "host-frozenbn_resnet50": _HOST + " --set model.backbone=frozenbn_resnet50",
}
# How the graph of a small step is planned, by name: options of ``graph_tools plan``.
GRAPH_PLANS = {
    "keep": "--choice keep",
    "keep-depth": "--choice keep --depth 3 --order topological",
    "keep-demand": "--choice keep --depth 0 --order demand",
    "remat": "--choice remat",
    "greedy": "--choice greedy",
    "integer": "--choice integer",
    "best": "--choice best",
}
GRAPH_LIMITS = "--limit 4MB --smallest 64KiB --device-memory 5MB --page 64KiB"
GRAPH_MACHINE = "--device-memory 5MB --page 64KiB"
# Which cases of the exactness of engines are computed: quick ones of a pooling, those in float32, slow ones of an
# engine.
EXACTNESS = ("gmp", "gap", "float32", "streaming", "unified")
