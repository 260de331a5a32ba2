import pytest

from advnas.tasks import TASKS
from advnas.tasks.image import ImageRetrainConfig, ImageSearchConfig


def test_the_defaults_are_the_protocol_of_nas_bench_201():
    config = ImageSearchConfig()
    assert (config.epochs, config.batch_size, config.channels, config.cells) == (250, 64, 16, 5)
    assert (config.lr, config.lr_min, config.momentum, config.nesterov) == (0.025, 0.001, 0.9, True)
    assert (config.weight_decay, config.grad_clip) == (5e-4, 5)
    assert (config.arch_lr, config.arch_betas, config.arch_weight_decay) == (3e-4, (0.5, 0.999), 1e-3)
    assert config.arch_init == 1e-3
    assert (config.without, config.reduction, config.image_size, config.halving_cells) == ((), "residual", None, 0)
    config = ImageRetrainConfig()
    assert (config.epochs, config.batch_size, config.channels, config.cells) == (200, 256, 16, 5)
    assert (config.lr, config.momentum, config.nesterov, config.weight_decay) == (0.1, 0.9, True, 5e-4)


@pytest.mark.parametrize(
    "setting, value, requirement",
    [
        ("epochs", 0, "greater than or equal to 1"),
        ("epochs", 2.5, "valid integer"),
        ("warmup_epochs", -1, "greater than or equal to 0"),
        ("channels", "many", "valid integer"),
        ("lr", 0.0, "greater than 0"),
        ("lr", float("nan"), "finite"),
        ("momentum", 1.0, "less than 1"),
        ("arch_betas", (0.5,), "required"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**63, "less than"),
        ("task", "audio", "'image' or 'language'"),
        ("estimator", "adventage", "must be one of advantage"),
        ("space", "dart", "must be one of nasbench201"),
        ("data", "", "at least 1 character"),
        ("reduction", "heavy", "must be one of residual, light"),
        ("without", "none", "valid tuple"),
        ("image_size", 0, "greater than or equal to 1"),
        ("halving_cells", -1, "greater than or equal to 0"),
        ("halving_steps", 0, "greater than or equal to 1"),
    ],
)
def test_a_wrong_value_is_named_with_its_requirement(setting, value, requirement):
    with pytest.raises(ValueError, match=f"^{setting}: .*{requirement}.*, got ") as error:
        ImageSearchConfig(**{setting: value})
    assert repr(value) in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_settings_are_refused_with_the_closest_known_one(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("epoch: 3\n")
    with pytest.raises(ValueError, match=r"my\.yaml: unknown setting 'epoch'; did you mean epochs\?"):
        ImageSearchConfig().with_file(file)
    file.write_text("zzzz: 3\n")
    with pytest.raises(ValueError, match=r"unknown setting 'zzzz'; choose among task, "):
        ImageSearchConfig().with_file(file)


def test_the_yaml_of_a_configuration_makes_the_same_configuration(tmp_path):
    settings = {
        "data_dir": tmp_path,
        "arch_betas": (0.1, 0.2),
        "lr_min": 1e-7,  # PyYAML writes and reads 1.0e-07; a hand-written 1e-7 is a string to it
        "steps_per_epoch": None,
        "nesterov": False,
        "without": ("none", "avg_pool_3x3"),
        "image_size": 16,
        "estimator_settings": {"coefficient": 0.1, "mode": "one"},
    }
    config = ImageSearchConfig(**settings)
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    assert ImageSearchConfig().with_file(file) == config
    file.write_text("lr_min: 1e-7\n")
    assert ImageSearchConfig().with_file(file).lr_min == 1e-7


@pytest.mark.parametrize(
    "content, message",
    [
        (b"epochs: [1", "not a YAML file"),
        (b"\xff\xfe\x00", "not a YAML file"),
        (b"- 1\n", "must be a YAML mapping such as 'epochs: 50', got list"),
        (b"", "must be a YAML mapping such as 'epochs: 50', got NoneType"),
        (b"epochs: 0\n", "epochs: Input should be greater than or equal to 1, got 0"),
        (b"3: 4\n", "unknown setting 3"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, content, message):
    file = tmp_path / "my.yaml"
    file.write_bytes(content)
    with pytest.raises(ValueError) as error:
        ImageSearchConfig().with_file(file)
    assert str(error.value).startswith(f"{file}: {message}")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"my\.yaml: no such configuration file"):
        ImageSearchConfig().with_file(tmp_path / "my.yaml")


def test_a_number_that_yaml_takes_for_a_text(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("estimator_settings: {coefficient: 1e-2, unpicked: sum, zero: true}\nlr: 1e-2\n")
    config = ImageSearchConfig().with_file(file)
    assert config.lr == 0.01
    assert config.estimator_settings == {"coefficient": 0.01, "unpicked": "sum", "zero": True}


def test_settings_of_older_files_are_read_by_their_names_of_today(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("judge_cells: 3\njudge_steps: 70\n")
    config = ImageSearchConfig().with_file(file)
    assert (config.halving_cells, config.halving_steps) == (3, 70)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("preset", ["paper", "fast"])
def test_presets_are_acceptable(task, preset):
    defaults = TASKS[task].search_defaults()
    config = defaults.with_settings(TASKS[task].presets[preset], preset)
    assert (config == defaults) == (preset == "paper")
    assert config.task == task == TASKS[task].retrain_defaults().task
