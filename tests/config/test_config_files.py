import os

import pytest

from whole_slide_cnn.config import load_config, parse_overrides
from whole_slide_cnn.errors import ConfigError

MINIMAL = "result_dir: out\ndata:\n  classes: [a, b]\n  canvas: 64\n  mpp: 1.0\n"


@pytest.fixture
def write(tmp_path):
    def write_file(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return str(path)

    return write_file


def error_of(path, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_later_bases_win_and_the_file_itself_wins_over_all(write):
    write("first.yaml", "train:\n  epochs: 1\n  batch_size: 1\n  beta1: 0.1\n")
    write("second.yaml", "train:\n  epochs: 2\n  batch_size: 2\n")
    path = write("run.yaml", MINIMAL + "base: [first.yaml, second.yaml]\ntrain:\n  epochs: 3\n")
    train = load_config(path).train
    assert (train.epochs, train.batch_size, train.beta1) == (3, 2, 0.1)


def test_bases_are_recursive_and_relative_to_the_file_that_names_them(write):
    write("shared/deep/root.yaml", "seed: 7\nmodel:\n  pooling: gap\n")
    write("shared/middle.yaml", "base: deep/root.yaml\nmodel:\n  pooling: gmp\n")
    config = load_config(write("run.yaml", MINIMAL + "base: shared/middle.yaml\n"))
    assert (config.seed, config.model.pooling) == (7, "gmp")


def test_one_base_may_be_reached_twice(write):
    write("root.yaml", "seed: 7\n")
    write("a.yaml", "base: root.yaml\n")
    write("b.yaml", "base: root.yaml\n")
    assert load_config(write("run.yaml", MINIMAL + "base: [a.yaml, b.yaml]\n")).seed == 7


def test_cycles_are_refused(write):
    write("b.yaml", "base: a.yaml\n")
    path = write("a.yaml", MINIMAL + "base: b.yaml\n")
    assert "base files form a cycle" in error_of(path)
    assert "base files form a cycle" in error_of(write("self.yaml", "base: self.yaml\n"))


def test_paths_are_relative_to_the_file_that_states_them(write, tmp_path, monkeypatch):
    write("shared/base.yaml", "data:\n  slides: slides\n  train: ../lists/train.csv\n")
    path = write("runs/run.yaml", MINIMAL + "  val: val.csv\n  test: /lists/test.csv\nbase: ../shared/base.yaml\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = load_config(os.path.relpath(path), ["model.weights=w.npz", "data.test=~/test.csv"])
    assert config.result_dir == str(tmp_path / "runs" / "out")
    assert config.data.slides == str(tmp_path / "shared" / "slides")
    assert config.data.train == str(tmp_path / "lists" / "train.csv")
    assert config.data.val == str(tmp_path / "runs" / "val.csv")
    assert config.model.weights == str(elsewhere / "w.npz")
    assert config.data.test == os.path.join(os.path.expanduser("~"), "test.csv")
    assert load_config(path).data.test == "/lists/test.csv"


def test_the_default_slide_folder_is_that_of_the_file(write, tmp_path):
    assert load_config(write("runs/run.yaml", MINIMAL)).data.slides == str(tmp_path / "runs")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "the configuration is empty"),
        ("# only a comment\n", "the configuration is empty"),
        ("- a\n- b\n", "expected lines of the form 'key: value'"),
        ("just text\n", "expected lines of the form 'key: value'"),
        ("seed: 1\ntrain: [1, 2\n", "not valid YAML in line 3"),
        ("seed: 1\n\tepochs: 2\n", "not valid YAML in line 2"),
        ("seed: !!python/object/apply:os.getcwd []\n", "not valid YAML in line 1"),
        ("seed: \x00\n", "not valid YAML"),
        ("when: 2020-13-45\n", "not valid YAML: month must be in 1..12"),
        (b"seed: \xff\xfe\n", "not UTF-8 text"),
        ("seed: 1\nseed: 2\n", "key seed in line 2 was already given above"),
        ("train:\n  epochs: 1\n  epochs: 2\n", "key epochs in line 3 was already given above"),
        ("base: 3\n", "base: expected a file name or a list of file names"),
        ("base: [a.yaml, 3]\n", "base: expected a file name or a list of file names"),
        ("base: absent.yaml\n", "absent.yaml does not exist"),
    ],
)
def test_unusable_files_get_one_sentence(write, text, message):
    path = write("run.yaml", text)
    error = error_of(path)
    assert error.startswith(path + ": ")
    assert message in error


def test_missing_file_and_folder(tmp_path):
    assert error_of(str(tmp_path / "absent.yaml")).endswith("No such file or directory")
    assert error_of(str(tmp_path)).endswith("Is a directory")


def test_an_alias_that_contains_itself_does_not_hang(write):
    assert "data.classes" in error_of(write("run.yaml", "data:\n  classes: &loop [*loop]\n"))


def test_anchors_may_be_shared(write):
    path = write("run.yaml", MINIMAL + "train: &train {epochs: 4}\nstreaming: {window: 64}\n")
    assert load_config(path).train.epochs == 4


def test_overrides_apply_in_order_and_win(write):
    path = write("run.yaml", MINIMAL + "seed: 1\n")
    config = load_config(path, ["seed=2", "seed=3", "data.canvas=[8, 9]", "train.learning_rate=1e-3", "data.mpp=2"])
    assert (config.seed, config.data.canvas, config.train.learning_rate) == (3, (8, 9), 1e-3)
    assert config.data.mpp == 2.0


def test_an_empty_or_null_override_unsets(write):
    path = write("run.yaml", MINIMAL + "  val: val.csv\n")
    assert load_config(path).data.val is not None
    assert load_config(path, ["data.val="]).data.val is None
    assert load_config(path, ["data.val=null"]).data.val is None
    assert load_config(path, ["data.mpp=null", "data.ratio=0.2"]).data.ratio == 0.2


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.epochs", "expected key=value"),
        ("=3", "expected key=value"),
        ("train..epochs=3", "expected key=value"),
        ("train.epochs=[1", "override train.epochs=[1: not valid YAML in line 1"),
        ("train.epochs=x", "override train.epochs=x: train.epochs: expected a whole number, got the text 'x'"),
        ("train=3", "override train=3: train: expected a section of keys such as train.optimizer, got 3"),
        ("seed.x=3", "override seed.x=3: seed: expected a whole number, got the section {'x': 3}"),
        ("train.epoch=3", "override train.epoch=3: unknown key train.epoch; did you mean train.epochs?"),
        ("base=x.yaml", "override base=x.yaml: unknown key base"),
    ],
)
def test_bad_overrides(write, override, message):
    assert message in error_of(write("run.yaml", MINIMAL), [override])


def test_parse_overrides_keeps_what_follows_the_first_equals_sign():
    (source,) = parse_overrides(["data.train=a=b.csv"])
    assert source.values == {"data": {"train": "a=b.csv"}}
