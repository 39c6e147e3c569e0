"""From a command line and files to the settings of a run."""

import sys
import textwrap
from pathlib import Path

import pytest
import yaml

import domainbed
from domainbed.cli.configuration import (
    SUBSET_SIZE,
    check_name,
    config_file,
    configure,
    first_command,
    option_help,
    read_arguments,
)
from domainbed.errors import UserError
from domainbed.registry import ALGORITHMS, DATASETS
from domainbed.settings import RunSettings

SHIPPED = Path(domainbed.__file__).parents[1] / "config.yaml"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with an empty config.yaml, which hides the one that is shipped."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    return tmp_path


@pytest.fixture
def plugins():
    """Forget afterwards what a test announces."""
    registries = (ALGORITHMS, DATASETS)
    before = [(dict(one._plugins), dict(one._classes)) for one in registries]
    yield
    for one, (announced, classes) in zip(registries, before, strict=True):
        one._plugins, one._classes = announced, classes
    for name in [name for name in sys.modules if name.startswith("domainbed_plugin_")]:
        del sys.modules[name]


def write(path, text):
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def configured(command="", script="train_all", recorded=None):
    return configure(script, read_arguments(command.split()), recorded)


def fault(command=""):
    with pytest.raises(UserError) as raised:
        configured(command)
    return str(raised.value)


@pytest.mark.parametrize(
    ("command", "name", "files", "values"),
    [
        ("run", "run", [], {}),
        ("", None, [], {}),
        ("run --lr 1e-4", "run", [], {"lr": "1e-4"}),
        ("run --lr=1e-4", "run", [], {"lr": "1e-4"}),
        ("run lr=1e-4", "run", [], {"lr": "1e-4"}),
        ("--lr 1e-4 run", "run", [], {"lr": "1e-4"}),
        ("run --lr -1", "run", [], {"lr": "-1"}),
        ("run lr=", "run", [], {"lr": ""}),
        ("run --lr=", "run", [], {"lr": ""}),
        ("run a=b=c", "run", [], {"a": "b=c"}),
        ("run --a=b=c", "run", [], {"a": "b=c"}),
        ("run --data-dir eyes", "run", [], {"data_dir": "eyes"}),
        ("run lr=1 lr=2 --lr 3", "run", [], {"lr": "3"}),
        ("run --debug", "run", [], {"debug": "true"}),
        ("--debug run", "run", [], {"debug": "true"}),
        ("run --debug false --lr 1", "run", [], {"debug": "false", "lr": "1"}),
        ("run --debug=false", "run", [], {"debug": "false"}),
        ("run --resume --show", "run", [], {"resume": "true", "show": "true"}),
        ("run --seeds 0 1 2 lr=1", "run", [], {"seeds": ["0", "1", "2"], "lr": "1"}),
        ("run --seeds 0 1 --lr 2", "run", [], {"seeds": ["0", "1"], "lr": "2"}),
        ("run --seeds 7", "run", [], {"seeds": ["7"]}),
        ("run --test_envs 0 2 x.yaml", "run", ["x.yaml"], {"test_envs": ["0", "2"]}),
        ("run --test_envs 0,2 idrid", "run", [], {"test_envs": ["0,2", "idrid"]}),
        ("run a.yaml b.yml C.YAML", "run", ["a.yaml", "b.yml", "C.YAML"], {}),
        ("run file=a.yaml", "run", [], {"file": "a.yaml"}),
        ("run --plugin a.py b.py --steps 3", "run", [], {"plugin": ["a.py", "b.py"], "steps": "3"}),
    ],
)
def test_a_command_line_comes_apart(command, name, files, values):
    got = read_arguments(command.split())
    assert (got.name, [str(path) for path in got.files], got.values) == (name, files, values)


@pytest.mark.parametrize("command", ["run --lr", "run --lr --steps 3", "run --seeds", "run --seeds --debug"])
def test_an_option_without_a_value_is_an_error_that_shows_both_forms(command):
    with pytest.raises(UserError, match=r"--(\w+) needs a value, but none follows. Write --\1 <value> or \1=<value>"):
        read_arguments(command.split())


def test_two_names_are_an_error_that_shows_both():
    with pytest.raises(UserError, match="a run has one name, but 'one' and 'two' are given"):
        read_arguments(["one", "two"])


@pytest.mark.parametrize("name", ["run", "full_training", "2024-01-01", "a.b", "Größe", "a" * 200, "two words"])
def test_a_folder_name_is_the_name_of_a_run(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", [".", "..", "a/b", "/a", "../a", "a\\b", ".hidden", "-x", "a\nb", "a\0b", "\x1b[31m", "é" * 101, "a" * 201]
)
def test_what_is_no_folder_name_is_refused(name):
    with pytest.raises(UserError, match="can't name a run|bytes long"):
        check_name(name)


@pytest.mark.parametrize("name", [None, ""])
def test_a_run_without_a_name_is_told_where_to_write_it(name):
    with pytest.raises(UserError, match="a run needs a name. Write it first: python train_all.py <name>"):
        check_name(name)


def test_each_layer_wins_over_those_before_it(folder):
    class_default, data_set = RunSettings().steps, configured().settings.steps
    assert (class_default, data_set) == (10_000, 2_000)
    write(folder / "config.yaml", "steps: 1\nseed: 1\nlr: 1\nlatent_dim: 1\n")
    write(folder / "a.yaml", "steps: 2\nseed: 2\nlr: 2\n")
    write(folder / "b.yaml", "steps: 3\nseed: 3\n")
    got = configured("run a.yaml b.yaml steps=4")
    assert (got.settings.steps, got.settings.seed) == (4, 3)
    assert (got.algorithm_hparams.lr, got.algorithm_hparams.latent_dim) == (2, 1)
    sources = {key: got.resolved.sources[key] for key in ("steps", "seed", "lr", "latent_dim", "batch_size")}
    assert sources == {
        "steps": "command line", "seed": "b.yaml", "lr": "a.yaml", "latent_dim": "config.yaml", "batch_size": "default",
    }  # fmt: skip


def test_defaults_of_the_data_set_rank_between_the_classes_and_config_yaml(folder, monkeypatch):
    monkeypatch.setattr(DATASETS["SyntheticFundus"], "defaults", {"steps": 7, "lr": 0.5, "seed": 9})
    write(folder / "config.yaml", "steps: 8\n")
    got = configured()
    assert (got.settings.steps, got.settings.seed, got.algorithm_hparams.lr) == (8, 9, 0.5)
    assert got.resolved.sources["seed"] == "data set SyntheticFundus"


def test_blocks_win_over_the_top_level_of_their_file_and_only_there(folder):
    write(
        folder / "config.yaml",
        """
        algorithms: {VAE_DG: {lr: 0.2, latent_dim: 5}, ERM: {lr: 0.9}}
        datasets: {SyntheticFundus: {lr: 0.3, image_size: 48, steps: 77}, DR: {steps: 99}}
        lr: 0.1
        steps: 11
        image_size: 64
        """,
    )
    got = configured()
    assert got.algorithm_hparams.lr == 0.3, "the data set's block is the last word of a file"
    assert (got.settings.steps, got.dataset_hparams.image_size) == (77, 48)
    assert got.resolved.sources["lr"] == "config.yaml (datasets: SyntheticFundus)"
    assert got.resolved.sources["latent_dim"] == "config.yaml (algorithms: VAE_DG)"
    assert got.resolved.sources["steps"] == "config.yaml (datasets: SyntheticFundus)"
    write(folder / "later.yaml", "lr: 0.4\n")
    assert configured("run later.yaml").algorithm_hparams.lr == 0.4
    assert configured("--algorithm ERM --dataset Folder --data_dir d").algorithm_hparams.lr == 0.9


def test_a_key_of_another_algorithm_is_reported_in_a_file_and_refused_on_the_command_line(folder):
    write(folder / "config.yaml", "loss_multiplier_kl: 0.0001\n")
    got = configured("--algorithm ERM")
    assert got.resolved.unused == [("config.yaml", "loss_multiplier_kl")]
    assert "command line: no setting named 'loss_multiplier_kl'" in fault("--algorithm ERM loss_multiplier_kl=1")


def test_a_key_that_has_no_effect_beside_others_is_reported_to_who_set_it(folder):
    Path("config.yaml").write_text("kl_anneal_end: 100\ncapacity: 3\n")
    assert configured("--algorithm VAE").idle == []
    (only,) = configured("--algorithm VAE kl_anneal_end=600").idle
    assert only == "command line: kl_anneal_end = 600 has no effect, because kl_anneal = constant"
    Path("own.yaml").write_text("algorithm: VAE\nkl_anneal: linear\ngamma: 5\n")
    (only,) = configured("own.yaml").idle
    assert only == "own.yaml: gamma = 5.0 has no effect, because kl_anneal = linear"
    assert configured("--algorithm VAE kl_anneal=capacity capacity=9").idle == []
    assert "depth = 3" in configured("--algorithm UNet model=resnet18 depth=3").idle[0]
    assert configured("--algorithm UNet depth=3").idle == []


def test_a_key_of_another_algorithm_in_the_block_of_the_data_set_is_no_mistake(folder):
    block = "datasets: {SyntheticFundus: {kl_anneal_end: 100}}\n"
    write(folder / "config.yaml", block)
    assert configured("--algorithm ERM").resolved.unused == []
    assert configured().algorithm_hparams.kl_anneal_end == 100
    write(folder / "config.yaml", f"kl_anneal_end: 3\nalgorithms: {{ERM: {{kl_anneal_end: 4}}}}\n{block}")
    write(folder / "mine.yaml", block)
    assert configured("--algorithm ERM run mine.yaml").resolved.unused == [
        ("config.yaml", "kl_anneal_end"),
        ("config.yaml (algorithms: ERM)", "kl_anneal_end"),
        ("mine.yaml (datasets: SyntheticFundus)", "kl_anneal_end"),
    ]
    write(folder / "config.yaml", block.replace("end", "ende"))
    assert "(datasets: SyntheticFundus): no setting named 'kl_anneal_ende'" in fault("--algorithm ERM")


def test_all_faults_of_all_files_and_the_command_line_come_at_once(folder):
    write(folder / "config.yaml", "kl_anneal_end: soon\nstepps: 3\n")
    message = fault("lr=fast --seeds a")
    assert message.splitlines()[0] == (
        "config.yaml: kl_anneal_end = 'soon' is not a step count (a whole number of 0 or more, such as 5000)"
    )
    for part in ("config.yaml: no setting named 'stepps': did you mean 'steps'", "lr = 'fast'", "seeds = ['a']"):
        assert part in message
    assert len(message.splitlines()) == 4


def test_unknown_names_are_reported_together_with_their_neighbours(folder):
    write(folder / "config.yaml", "algorithms: {ERN: {lr: 1}}\ndatasets: {Synthetic: {}}\n")
    lines = fault("--algorithm VAE_GD --dataset dr").splitlines()
    assert [line.partition("?")[0] for line in lines] == [
        "no algorithm named 'VAE_GD': did you mean 'VAE_DG'",
        "no data set named 'dr': did you mean 'DR'",
        "config.yaml: algorithms: no algorithm named 'ERN': did you mean 'ERM'",
        "config.yaml: datasets: no data set named 'Synthetic': did you mean 'SyntheticFundus'",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("algorithms: VAE_DG", "algorithms must hold names, and below each its keys, but is 'VAE_DG'"),
        ("algorithms: {VAE_DG: 3}", "algorithms: VAE_DG must hold keys and values, but is 3"),
        ("datasets: [DR]", "datasets must hold names, and below each its keys, but is ['DR']"),
    ],
)
def test_a_block_of_another_shape_is_refused(folder, text, message):
    write(folder / "config.yaml", text)
    assert fault() == f"config.yaml: {message}"


@pytest.mark.parametrize("text", ["algorithms:", "algorithms: {VAE_DG: }", "datasets: {}", "# nothing"])
def test_an_empty_block_is_none(folder, text):
    write(folder / "config.yaml", text)
    assert configured().settings.algorithm == "VAE_DG"


def test_without_a_data_set_it_is_synthetic_fundus_or_dr_where_there_is_a_folder(folder):
    assert configured().settings.dataset == "SyntheticFundus"
    assert configured("--data_dir eyes").settings.dataset == "DR"
    assert configured("--data_dir eyes --dataset Folder").settings.dataset == "Folder"
    write(folder / "config.yaml", "data_dir: eyes\n")
    assert configured().settings.dataset == "DR"
    assert configured("data_dir=null").settings.dataset == "SyntheticFundus"


def test_train_subset_has_a_subset_size_of_its_own_below_every_file(folder):
    assert configured().settings.subset_size is None
    assert configured(script="train_subset").settings.subset_size == SUBSET_SIZE
    write(folder / "config.yaml", "subset_size: 33\n")
    assert configured(script="train_subset").settings.subset_size == 33


def test_show_lists_every_setting_with_the_layer_that_set_it(folder):
    write(folder / "config.yaml", "algorithms: {VAE_DG: {lr: 0.25}}\n")
    got = configured("run --debug steps=7")
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in got.shown() if line.startswith("  ")}
    assert rows["steps"] == ["7", "command line"]
    assert rows["checkpoint_freq"] == ["5", "command line: debug"]
    assert rows["lr"] == ["0.25", "config.yaml (algorithms: VAE_DG)"]
    assert rows["batch_size"][1] == "default"
    models = (RunSettings, got.dataset.HParams, got.algorithm.HParams)
    assert set(rows) == {key for model in models for key in model.model_fields}
    titles = [line for line in got.shown() if not line.startswith(" ")]
    assert titles == ["run:", "data set SyntheticFundus:", "algorithm VAE_DG:"]


def test_the_written_configuration_repeats_the_run(folder):
    got = configured("run lr=1e-3 --seeds 3 4 --test_envs 0,2 1 image_size=48 --debug class_weights=[1,2,3,4,5]")
    write(folder / "again.yaml", got.yaml("python train_all.py run"))
    again = configured("again again.yaml")
    assert again.plain() == got.plain()
    assert again.settings.steps == 10 and again.settings.test_envs == ["0,2", "1"]
    assert "# command line: debug" in (folder / "again.yaml").read_text()


def test_the_written_configuration_remembers_its_command(folder):
    path = write(folder / "again.yaml", configured().yaml("python train_all.py run a=': #'"))
    assert first_command(path) == "python train_all.py run a=': #'"
    assert first_command(write(path, "# mine: too\n")) is None
    assert first_command(write(path, "")) is None


def test_a_run_that_goes_on_keeps_its_configuration_and_refuses_another(folder):
    (folder / "recorded").mkdir()
    recorded = write(folder / "recorded" / "config.yaml", configured("run lr=0.5 steps=70").yaml("command"))
    write(folder / "config.yaml", "lr: 0.9\n")
    assert configured("run", recorded=recorded).algorithm_hparams.lr == 0.5
    assert configured("run results_dir=elsewhere lr=0.5", recorded=recorded).settings.results_dir == Path("elsewhere")
    with pytest.raises(
        UserError, match=r"can't go on with other settings: steps was 70 and is now 80 \(command line\)"
    ):
        configured("run steps=80", recorded=recorded)


def test_the_config_yaml_of_the_current_folder_comes_before_that_of_the_checkout(folder):
    assert config_file() == folder / "config.yaml"
    (folder / "config.yaml").unlink()
    assert config_file() == SHIPPED


def test_a_file_that_is_not_there_is_one_message(folder):
    assert fault("run nowhere.yaml") == "nowhere.yaml: No such file or directory. Give the path of a YAML file"


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
@pytest.mark.parametrize("dataset", list(DATASETS))
def test_the_shipped_config_resolves_for_every_algorithm_on_every_data_set(tmp_path, monkeypatch, algorithm, dataset):
    monkeypatch.chdir(tmp_path)
    if DATASETS[dataset].gives_vectors and not ALGORITHMS[algorithm].takes_vectors:
        assert f"{algorithm} learns from images, but {dataset} gives vectors" in fault(
            f"run --algorithm {algorithm} --dataset {dataset}"
        )
        return
    got = configured(f"run --algorithm {algorithm} --dataset {dataset}")
    assert isinstance(got.algorithm_hparams, ALGORITHMS[algorithm].HParams)
    assert isinstance(got.dataset_hparams, DATASETS[dataset].HParams)
    assert all(where.startswith("config.yaml") for where, _ in got.resolved.unused)


def test_the_shipped_config_repeats_no_default_that_has_changed():
    """At its top level config.yaml says what the classes say, so that deleting a line changes nothing."""
    shipped = yaml.safe_load(SHIPPED.read_text())
    defaults = RunSettings().model_dump(mode="json")
    top = {key: value for key, value in shipped.items() if key not in ("algorithms", "datasets")}
    assert top == {key: defaults[key] for key in top}
    for name, block in shipped["algorithms"].items():
        assert block == {key: ALGORITHMS[name].HParams().model_dump(mode="json")[key] for key in block}


PLUGIN = '''
    from domainbed.algorithms.autoencoder import AE
    from domainbed.registry import ALGORITHMS

    @ALGORITHMS.register("Mine")
    class Mine(AE):
        """Mine."""
'''


def test_an_algorithm_of_a_plug_in_file_is_an_algorithm(folder, plugins):
    write(folder / "mine.py", PLUGIN)
    got = configured("run --algorithm Mine --plugin mine.py")
    assert got.algorithm.name == "Mine" and got.settings.plugin == [Path("mine.py")]
    write(folder / "mine.yaml", "plugin: [mine.py]\nalgorithm: Mine\nalgorithms: {Mine: {lr: 0.5}}\n")
    assert configured("run mine.yaml").algorithm_hparams.lr == 0.5


@pytest.mark.parametrize("command", ["run plugin=mine.py", "run --plugin=mine.py", "run mine.yaml"])
def test_one_plug_in_file_may_be_written_without_brackets(folder, plugins, command):
    write(folder / "mine.py", PLUGIN)
    write(folder / "mine.yaml", "plugin: mine.py\n")
    assert configured(f"{command} --algorithm Mine").algorithm.name == "Mine"


@pytest.mark.parametrize("text", ["plugin: 3", "plugin: [null]"])
def test_a_plug_in_that_is_no_path_is_one_message(folder, text):
    write(folder / "config.yaml", text)
    assert "config.yaml: plugin = " in fault()


@pytest.mark.parametrize("word", ["true", "false"])
def test_pretrained_true_and_false_may_be_written_in_a_file(folder, word):
    write(folder / "config.yaml", f"pretrained: {word}\n")
    assert configured().algorithm_hparams.pretrained == word


def test_a_flag_in_a_block_ranks_below_the_top_level_of_its_own_file(folder):
    write(folder / "paper.yaml", "steps: 200\nalgorithms: {VAE_DG: {paper_compat: true}}\n")
    assert configured("run paper.yaml").settings.steps == 200


def test_help_shows_each_option_with_its_shape_and_its_default():
    rows = dict(option_help(RunSettings))
    assert len(rows) == len(RunSettings.model_fields)
    for option in (
        "--algorithm NAME", "--dataset NAME", "--plugin PLUGIN …", "--data_dir PATH", "--test_envs TEST_ENV …",
        "--holdout_fraction X", "--steps N", "--debug", "--seeds SEED …", "--device {auto,cpu,cuda}",
        "--results_dir PATH",
    ):  # fmt: skip
        assert option in rows, option
    assert rows["--steps N"].endswith("(default: 10000)")
    assert "default" not in rows["--debug"]
    assert list(dict(option_help(RunSettings, ["seed", "steps"]))) == ["--steps N", "--seed N"]


def test_help_shows_that_an_optional_number_is_a_number():
    assert {"--subset_size N", "--num_workers N"} <= dict(option_help(RunSettings)).keys()


def test_every_setting_of_everything_is_described():
    models = [RunSettings, *(one[name].HParams for one in (ALGORITHMS, DATASETS) for name in one)]
    silent = [f"{m.__qualname__}.{key}" for m in models for key, info in m.model_fields.items() if not info.description]
    assert not silent, silent
    for model in models:
        assert len(option_help(model)) == len(model.model_fields)


def test_the_block_of_the_data_set_wins_over_that_of_the_algorithm(folder):
    write(
        folder / "config.yaml",
        "kl_anneal_end: 1\nalgorithms: {VAE_DG: {kl_anneal_end: 2}}\ndatasets: {SyntheticFundus: {kl_anneal_end: 3}}\n",
    )
    assert configured().algorithm_hparams.kl_anneal_end == 3


def test_a_block_of_an_algorithm_inside_that_of_a_data_set_wins_over_both_and_serves_only_their_meeting(folder):
    write(
        folder / "config.yaml",
        """
        algorithms: {VAE_DG: {lr: 0.2, latent: vector}}
        datasets: {SyntheticFundus: {lr: 0.3, image_size: 48, algorithms: {VAE_DG: {lr: 0.4, latent: map}}}}
        """,
    )
    got = configured()
    assert (got.algorithm_hparams.lr, got.algorithm_hparams.latent, got.dataset_hparams.image_size) == (0.4, "map", 48)
    assert got.resolved.sources["lr"] == "config.yaml (datasets: SyntheticFundus, algorithms: VAE_DG)"
    assert configured("--algorithm ERM").algorithm_hparams.lr == 0.3
    assert configured("--dataset Folder --data_dir d").algorithm_hparams.lr == 0.2
    write(folder / "config.yaml", "datasets: {SyntheticFundus: {algorithms: {VAEDG: {lr: 1}, ERM: 3}}}\n")
    message = fault()
    assert "config.yaml: datasets: SyntheticFundus: algorithms: no algorithm named 'VAEDG'" in message
    assert "config.yaml: datasets: SyntheticFundus: algorithms: ERM must hold keys and values, but is 3" in message
    write(folder / "config.yaml", "datasets: {SyntheticFundus: {algorithms: {VAE_DG: {datasets: {DR: {lr: 1}}}}}}\n")
    assert "(datasets: SyntheticFundus, algorithms: VAE_DG): no setting named 'datasets'" in fault()


def test_the_demo_is_the_elbo(monkeypatch):
    """Means over values and latent dimensions: beta = weight x values / latents (`objectives.weights`)."""
    monkeypatch.chdir(Path(__file__).parents[2])
    hparams = configured().algorithm_hparams
    values, latents = 3 * 128**2, hparams.latent_channels * (128 // 2**hparams.latent_halvings) ** 2
    assert configured().dataset_hparams.image_size == 128
    assert hparams.loss_multiplier_kl * values / latents == pytest.approx(1, rel=1e-3)
