"""What a user can get wrong: one sentence that names it, an exit code, no traceback."""

import os
import resource

import numpy as np
import pytest

from whole_slide_cnn import test as scoring
from whole_slide_cnn import train as training

FAST = ("train.epochs=1", "train.updates_per_epoch=2", "train.batch_size=1", "data.val=null")
MOST_BYTES = 2**28  # of memory that a refused run may have touched


@pytest.fixture
def train(call, slide_set, tmp_path):
    """A function (*settings, folder=...) -> Outcome of a short training on a data set."""

    def run(*settings, folder=slide_set.folder):
        config = os.path.join(str(folder), "config.yaml")
        settings = ("result_dir={}".format(tmp_path / "results"),) + FAST + settings
        return call(training.main, "--config", config, *[w for s in settings for w in ("--set", s)])

    return run


def spoil(path, share=None):
    """Cut a file to a share of its size, or fill it with text."""
    if share is None:
        path.write_text("this is no slide\n" * 200, encoding="utf-8")
    else:
        os.truncate(str(path), int(share * os.path.getsize(str(path))))


# Configuration


@pytest.mark.parametrize(
    "setting, sentence",
    [
        ("train.lerning_rate=1", "unknown key train.lerning_rate; did you mean train.learning_rate?"),
        ("train.epochs=many", "train.epochs: expected a whole number, got the text 'many'"),
        ("train.epochs=0", "train.epochs: expected a value at least 1, got 0"),
        ("model.backbone=resnet", "model.backbone: expected one of tiny, "),
        ("data.mpp=null", "give exactly one of data.mpp, data.magnification and data.ratio, not none"),
        ("data.classes=[normal]", "data.classes: expected two classes or more, got 1"),
        ("epochs", "expected key=value"),
    ],
)
def test_wrong_keys_and_values(train, setting, sentence):
    outcome = train(setting)
    assert sentence in outcome.sentence()
    assert outcome.code == 2 and outcome.stderr.count("\n") == 1


def test_missing_keys(call, tmp_path):
    (tmp_path / "few.yaml").write_text("result_dir: here\ndata:\n  classes: [a, b]\n  mpp: 1.0\n", encoding="utf-8")
    sentence = call(training.main, "--config", tmp_path / "few.yaml").sentence()
    assert "few.yaml: the required key is missing: data.canvas" in sentence


def test_missing_configuration(call, tmp_path):
    sentence = call(training.main, "--config", tmp_path / "none.yaml").sentence()
    assert "none.yaml: cannot read the configuration: No such file or directory" in sentence


def test_no_configuration_named(call):
    outcome = call(training.main)
    assert outcome.code == 2 and "--config is required" in outcome.stderr and "Traceback" not in outcome.stderr


def test_in_a_process_of_its_own(launch, slide_set, tmp_path):
    outcome = launch("train", "--config", "config.yaml", "--set", "modle.backbone=tiny", cwd=slide_set.folder)
    assert outcome.sentence().endswith("unknown key modle; did you mean model?")
    assert outcome.code == 2 and outcome.stdout == "" and outcome.stderr.count("\n") == 1


# Data lists


def test_label_outside_the_classes(train, make_list, own_slides):
    make_list(str(own_slides / "train.csv"), [("train-0", "normal"), ("train-1", "tumour")])
    sentence = train(folder=own_slides).sentence()
    assert "train.csv, line 3: unknown label 'tumour' of slide train-1; the classes are normal, tumor" in sentence


def test_label_index_outside_the_classes(train, make_list, own_slides):
    make_list(str(own_slides / "train.csv"), [("train-0", "0"), ("train-1", "2")])
    assert "line 3: unknown label '2' of slide train-1" in train(folder=own_slides).sentence()


def test_empty_split(train, make_list, own_slides):
    make_list(str(own_slides / "train.csv"), [])
    assert "train.csv names no slide" in train(folder=own_slides).sentence()


def test_missing_data_list(train, own_slides):
    os.remove(str(own_slides / "train.csv"))
    assert "train.csv (No such file or directory)" in train(folder=own_slides).sentence()


def test_no_data_list_named(train, call, slide_set, tmp_path):
    assert train("data.train=null").sentence() == "data.train must name a data list for this command"
    arguments = ("--config", slide_set.path("config.yaml"), "--set", "data.test=null")
    assert call(scoring.main, *arguments).sentence() == "data.test must name a data list for this command"


def test_a_case_in_two_splits(train, make_list, own_slides):
    make_list(str(own_slides / "test.csv"), [("train-0", "normal")])
    assert "case train-0 is in both train and test" in train(folder=own_slides).sentence()


# Slides


@pytest.mark.parametrize("share", [None, 0.02, 0.5], ids=["text", "header only", "half"])
def test_a_broken_slide_in_training_is_skipped_by_name(train, own_slides, share):
    spoil(own_slides / "slides" / "train-2.tif", share)
    settings = ("train.updates_per_epoch=6", "data.max_failed_share=0.2")
    outcome = train(*settings, folder=own_slides)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.count("slide train-2: ") == 1 and "Traceback" not in outcome.stderr
    assert "finished without 1 unreadable slides: train-2" in outcome.stdout


def test_more_broken_slides_than_the_set_share(train, own_slides):
    spoil(own_slides / "slides" / "train-2.tif", 0.5)
    spoil(own_slides / "slides" / "train-3.tif")
    sentence = train("train.updates_per_epoch=6", folder=own_slides).sentence()
    assert sentence.startswith("2 of 6 slides could not be read (train-2, train-3), more than the share of 0.1")
    assert "data.max_failed_share" in sentence


def test_all_slides_missing(train, tmp_path):
    outcome = train("data.slides={}".format(tmp_path))
    assert outcome.sentence() == "none of the 6 slides can be read"
    assert "there is no file {}".format(tmp_path / "train-0.tif") in outcome.stdout


def test_missing_resolution(train, make_slide, own_slides):
    for index in range(6):
        make_slide(str(own_slides / "slides" / "train-{}.tif".format(index)), index % 2, index, mpp=None)
    outcome = train(folder=own_slides)
    assert outcome.sentence() == "none of the 6 slides can be read"
    assert outcome.stdout.count("µm/px") >= 6 or outcome.stdout.count("slide_mpp") >= 6
    assert train("data.slide_mpp=1.0", folder=own_slides).code == 0


def test_broken_slides_in_testing_are_listed(launch, trained, own_slides):
    """In a process of its own; the other slides are scored all the same."""
    folder, _, _ = trained
    spoil(own_slides / "slides" / "test-1.tif", 0.5)
    spoil(own_slides / "slides" / "test-4.tif")
    outcome = launch(
        *["test", "--config", own_slides / "config.yaml"],
        *["--set", "result_dir={}".format(own_slides / "out"), "--checkpoint", folder / "best.npz"],
    )
    assert outcome.code == 1
    listed = [line for line in outcome.stderr.splitlines() if line.startswith("not scored: slide ")]
    assert [line.split(":")[1].strip() for line in listed] == ["slide test-1", "slide test-4"]
    assert "Traceback" not in outcome.stderr and "4 slides, accuracy" in outcome.stdout
    assert (own_slides / "out" / "test" / "scores.csv").read_text(encoding="utf-8").count("\n") == 5


def test_nothing_to_test(call, trained, slide_set, tmp_path):
    folder, _, _ = trained
    settings = ("data.slides={}".format(tmp_path), "result_dir={}".format(tmp_path / "out"))
    outcome = call(
        scoring.main,
        *["--config", slide_set.path("config.yaml"), "--checkpoint", folder / "best.npz"],
        *[word for setting in settings for word in ("--set", setting)],
    )
    assert outcome.sentence() == "none of the 6 slides of the test list can be read"


# Results


@pytest.mark.parametrize("inner", ["", "deeper"])
def test_unwritable_result_folder(train, tmp_path, inner):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    folder = os.path.join(str(tmp_path / "file"), inner).rstrip(os.sep)
    sentence = train("result_dir={}".format(folder)).sentence()
    assert sentence.startswith("cannot create folder {}: ".format(folder))


def test_checkpoint_of_another_model(launch, trained, slide_set):
    folder, _, _ = trained
    outcome = launch("test", "--config", folder / "config.yaml", "--set", "model.pooling=gap")
    assert outcome.sentence() == "checkpoint {} is of another model: pooling is gmp, the configuration says gap".format(
        folder / "best.npz"
    )
    assert outcome.code == 2


def test_no_checkpoint(call, slide_set, tmp_path):
    outcome = call(scoring.main, "--config", slide_set.path("config.yaml"), "--set", "result_dir={}".format(tmp_path))
    assert outcome.sentence() == "checkpoint {} does not exist; train first, or name another one".format(
        tmp_path / "best.npz"
    )


def test_broken_checkpoint(call, trained, tmp_path):
    folder, _, _ = trained
    broken = tmp_path / "broken.npz"
    content = (folder / "best.npz").read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    outcome = call(scoring.main, "--config", folder / "config.yaml", "--checkpoint", broken)
    assert "{} is not a checkpoint of this program, or is broken".format(broken) in outcome.sentence()


@pytest.mark.parametrize("name", ["weights.h5", "weights.npz", "weights.safetensors", "weights.txt"])
def test_bad_weight_files(train, tmp_path, name):
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    (tmp_path / name).write_text("these are no weights\n" * 50, encoding="utf-8")
    sentence = train("model.weights={}".format(tmp_path / name)).sentence()
    assert str(tmp_path / name) in sentence


def test_missing_weight_file(train, tmp_path):
    sentence = train("model.weights={}".format(tmp_path / "none.h5")).sentence()
    assert sentence == "weight file {} does not exist".format(tmp_path / "none.h5")


def test_weights_of_another_backbone(train, trained):
    folder, _, _ = trained
    sentence = train("model.weights={}".format(folder / "best.h5"), "model.backbone=fixup_resnet34").sentence()
    assert "{} is not a weight file of fixup_resnet34".format(folder / "best.h5") in sentence


# Memory


def test_too_little_memory(train):
    sentence = train("memory_gb=0.01").sentence()
    assert sentence.startswith("engine streaming needs ") and "memory_gb allows 0.01 GB" in sentence


@pytest.mark.parametrize("memory", ["null", "1.0e6"], ids=["this machine's", "endless"])
def test_direct_refuses_a_canvas_of_the_papers_size_before_it_allocates(train, memory):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    settings = ("engine=direct", "model.backbone=resnet50", "data.canvas=21500", "memory_gb={}".format(memory))
    sentence = train(*settings).sentence()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_BYTES / 1024
    if memory == "null":
        assert sentence.startswith("engine direct needs ") and "use engine: streaming" in sentence
    else:
        assert "21500" not in sentence and "of shape (1, " in sentence and "2^31 or more" in sentence


# Settings


def test_a_loss_that_is_no_number(train):
    """A learning rate beyond all reason ends the run with the slide's name, not with weights that are no numbers."""
    with np.errstate(all="ignore"):
        sentence = train("train.learning_rate=1.0e+30", "train.updates_per_epoch=6").sentence()
    assert "the loss of slide train-" in sentence and "lower train.learning_rate" in sentence
