"""Layers of a configuration, the types of values, and what a user reads when one of them is wrong."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field as PydanticField
from pydantic import create_model

from domainbed.algorithms.latent_classifier import LatentClassifier
from domainbed.algorithms.vae_dg import VAE_DG
from domainbed.errors import UserError
from domainbed.hparams import (
    Field,
    Fraction,
    HParams,
    Layer,
    Names,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    StepCount,
    names_in,
    read_yaml,
    resolve,
)
from domainbed.settings import RunSettings


class Run(HParams):
    """Settings of a run that there is only in this test."""

    steps: PositiveInt = Field(1000, description="steps")
    rate: PositiveFloat = Field(1e-3, description="rate")
    share: Fraction = Field(0.2, description="share")
    quick: bool = Field(False, description="flag")
    limit: PositiveInt | None = Field(None, description="limit")
    tags: Annotated[Names, names_in(["alpha", "beta"])] = Field([], description="tags")

    presets = {"quick": {"steps": 10, "rate": 0.5}}


class Method(HParams):
    """Options of a method."""

    ramp_end: StepCount = Field(0, description="end of a ramp")
    weight: NonNegativeFloat = Field(1.0, description="weight")
    mode: Literal["mean", "sum"] = Field("mean", description="mode")
    weights: Literal["none"] | list[NonNegativeFloat] = Field("none", description="weights")
    compat: bool = Field(False, description="flag")

    presets = {"compat": {"mode": "sum", "steps": 15_000}}


def merged(*layers: Layer, known_elsewhere: Any = lambda: ()):
    return resolve([Run, Method], list(layers), known_elsewhere)


def from_command_line(**values: Any):
    return merged(Layer("command line", values)).values


def fault(**values: Any) -> str:
    with pytest.raises(UserError) as raised:
        from_command_line(**values)
    return str(raised.value)


def test_later_layers_win_and_each_value_remembers_who_set_it():
    resolved = merged(
        Layer("first", {"steps": 1, "rate": 0.1, "weight": 1}),
        Layer("second", {"steps": 2, "rate": 0.2}),
        Layer("third", {"steps": 3}),
    )
    assert [resolved.values[key] for key in ("steps", "rate", "weight", "share")] == [3, 0.2, 1, 0.2]
    assert [resolved.sources[key] for key in ("steps", "rate", "weight", "share")] == [
        "third",
        "second",
        "first",
        "default",
    ]
    assert resolved.models[Run].steps == 3 and resolved.models[Method]["weight"] == 1


def test_values_of_a_flag_rank_just_below_the_layer_that_sets_it():
    below = Layer("file", {"steps": 500, "rate": 0.1})
    resolved = merged(below, Layer("command line", {"quick": "true", "rate": "0.2"}))
    assert (resolved.values["steps"], resolved.values["rate"]) == (10, 0.2)
    assert (resolved.sources["steps"], resolved.sources["rate"]) == ("command line: quick", "command line")
    assert merged(Layer("file", {"quick": True}), Layer("command line", {"steps": 500})).values["steps"] == 500


@pytest.mark.parametrize("off", [False, "false"])
def test_a_flag_that_is_off_changes_nothing(off):
    resolved = merged(Layer("file", {"steps": 500}), Layer("command line", {"quick": off}))
    assert resolved.values["steps"] == 500 and resolved.sources["steps"] == "file"


def test_a_flag_may_set_values_of_another_part_and_skips_those_that_are_not_there():
    assert from_command_line(compat="true")["steps"] == 15_000
    assert resolve([Method], [Layer("command line", {"compat": "true"})]).values["mode"] == "sum"


def test_of_two_flags_in_one_layer_that_of_the_run_wins_over_that_of_the_algorithm():
    for number in range(20):  # an order that depends on the hash of a name is right for one of them, not for all
        flag = f"flag_{number}"
        other = create_model("Other", __base__=HParams, **{flag: (bool, False)})
        other.presets = {flag: {"steps": 15_000}}
        assert resolve([Run, other], [Layer("command line", {flag: "true", "quick": "true"})]).values["steps"] == 10


@pytest.mark.parametrize("text", ["1e-4", "1E-4", " 0.0001", 1e-4])
def test_a_number_may_be_written_with_an_exponent(text):
    assert from_command_line(rate=text)["rate"] == 1e-4


@pytest.mark.parametrize("key", ["rate", "steps", "weight", "ramp_end", "share", "limit"])
def test_true_is_not_a_number(key):
    for value in (True, False, "true"):
        assert f"{key} = {value!r} is not a" in fault(**{key: value})


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("steps", 0, "a whole number of 1 or more"),
        ("steps", "2.5", "a whole number of 1 or more"),
        ("steps", None, "a whole number of 1 or more"),
        ("limit", "few", "a whole number of 1 or more or null"),
        ("rate", "0", "a number above 0, such as 1e-4"),
        ("rate", "inf", "a number above 0, such as 1e-4"),
        ("rate", ".nan", "a number above 0, such as 1e-4"),
        ("weight", -1, "a number of 0 or more, such as 1e-4"),
        ("weight", "nan", "a number of 0 or more, such as 1e-4"),
        ("share", 1, "a fraction between 0 and 1, such as 0.2"),
        ("quick", "perhaps", "true or false"),
        ("mode", "max", "one of mean, sum"),
        ("weights", "some", "'none' or a list, each a number of 0 or more, such as 1e-4"),
        ("weights", "[1, -1]", "'none' or a list, each a number of 0 or more, such as 1e-4"),
        ("tags", 3, "a list of names, such as [a, b] or a,b"),
    ],
)
def test_a_wrong_value_is_told_what_it_should_be(key, value, kind):
    assert fault(**{key: value}) == f"command line: {key} = {value!r} is not {kind}"


def test_a_step_count_says_what_one_is():
    with pytest.raises(UserError) as raised:
        resolve([RunSettings, VAE_DG.HParams], [Layer("config.yaml", {"kl_anneal_end": "soon"}, shared=True)])
    assert str(raised.value) == (
        "config.yaml: kl_anneal_end = 'soon' is not a step count (a whole number of 0 or more, such as 5000)"
    )


@pytest.mark.parametrize("text", ["null", "None", " none "])
def test_null_is_null_where_that_is_possible_and_a_word_elsewhere(text):
    assert merged(Layer("file", {"limit": 3}), Layer("command line", {"limit": text})).values["limit"] is None
    assert from_command_line(weights="none")["weights"] == "none"


def test_lists_are_written_with_brackets_or_commas():
    for text in ("[alpha, beta]", "alpha,beta", " alpha , beta ,", ["alpha", "beta"]):
        assert from_command_line(tags=text)["tags"] == ["alpha", "beta"]
    assert from_command_line(tags="[]")["tags"] == from_command_line(tags="")["tags"] == []
    assert from_command_line(weights="[1, 2.5]")["weights"] == [1.0, 2.5]


def test_an_unknown_name_in_a_list_is_told_its_neighbours():
    assert "(no 'alfa': did you mean 'alpha'? known names: alpha, beta)" in fault(tags="beta,alfa")


def test_every_fault_is_reported_at_once_each_with_its_place():
    with pytest.raises(UserError) as raised:
        merged(Layer("one.yaml", {"stepz": 5, "rate": "fast"}), Layer("command line", {"mode": "max", "steps": -1}))
    lines = str(raised.value).splitlines()
    assert [line.partition(" is ")[0].partition(": did")[0] for line in lines] == [
        "one.yaml: no setting named 'stepz'",
        "one.yaml: rate = 'fast'",
        "command line: mode = 'max'",
        "command line: steps = -1",
    ]


def test_a_value_that_a_later_layer_mends_is_a_fault_all_the_same():
    with pytest.raises(UserError, match="one.yaml: steps = 0"):
        merged(Layer("one.yaml", {"steps": 0}), Layer("command line", {"steps": 5}))


@pytest.mark.parametrize(("typed", "meant"), [("stpes", "steps"), ("Rate", "rate"), ("ramp-end", "ramp_end")])
def test_an_unknown_key_is_told_its_nearest_neighbour(typed, meant):
    message = fault(**{typed: 1})
    assert f"no setting named {typed!r}: did you mean {meant!r}" in message
    assert "known names: compat, limit, mode" in message


def test_a_key_of_something_else_is_reported_unused_in_a_shared_file_and_an_error_elsewhere():
    def elsewhere():
        return ["codebook"]

    layer = {"codebook": 512}
    resolved = merged(Layer("config.yaml", layer, shared=True), known_elsewhere=elsewhere)
    assert resolved.unused == [("config.yaml", "codebook")] and "codebook" not in resolved.values
    with pytest.raises(UserError, match="command line: no setting named 'codebook'"):
        merged(Layer("command line", layer), known_elsewhere=elsewhere)
    with pytest.raises(UserError, match="config.yaml: no setting named 'codebok'"):
        merged(Layer("config.yaml", {"codebok": 1}, shared=True), known_elsewhere=elsewhere)


def test_what_else_is_known_is_only_asked_for_where_it_matters():
    merged(Layer("config.yaml", {"steps": 3}, shared=True), known_elsewhere=lambda: pytest.fail("paid for imports"))


def test_two_parts_of_a_run_with_one_key_are_a_bug_that_names_it():
    class Twice(HParams):
        steps: int = PydanticField(1)

    with pytest.raises(TypeError, match="declares steps"):
        resolve([Run, Twice], [])


def test_hyper_parameters_are_read_as_attributes_or_items_and_do_not_change():
    hparams = Method(weight=2)
    assert hparams.weight == hparams["weight"] == 2
    with pytest.raises(ValueError, match="frozen"):
        hparams.weight = 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kl_anneal_start": 600, "kl_anneal_end": 500}, "kl_anneal_start = 600 lies behind kl_anneal_end = 500"),
        (
            {"kl_anneal_cyclical": True, "kl_anneal_end": 600, "kl_anneal_cycle_length": 500},
            "kl_anneal_end = 600 lies behind the end of a cycle (kl_anneal_cycle_length = 500), so the KL would never "
            "get its full weight. Lower kl_anneal_end or lengthen the cycle",
        ),
        ({"paper_compat": True, "recon_reduction": "mean"}, "paper_compat = true sums over the batch"),
        ({"freeze_bn": True, "pretrained": "false"}, "freeze_bn = true would freeze the statistics of random weights"),
    ],
)
def test_values_that_contradict_each_other_are_refused(values, message):
    with pytest.raises(UserError) as raised:
        resolve([RunSettings, VAE_DG.HParams], [Layer("command line", values)])
    assert str(raised.value).startswith(message)


def test_a_cycle_length_matters_only_to_cyclical_annealing():
    layer = Layer("command line", {"kl_anneal_end": 600, "kl_anneal_cycle_length": 500})
    assert resolve([VAE_DG.HParams], [layer]).values["kl_anneal_end"] == 600


def test_paper_compat_stands_for_the_published_settings():
    values = resolve([RunSettings, VAE_DG.HParams], [Layer("command line", {"paper_compat": "true"})]).values
    expected = {
        "decoder": "published", "recon_reduction": "sum", "loss_multiplier_kl": 50_000, "loss_multiplier_y": 50_000,
        "kl_anneal_end": 0, "steps": 15_000,
    }  # fmt: skip
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("value", "runs"),
    [
        ("0,2", ["0,2"]),
        ("0 2", ["0", "2"]),
        ([0, 2], ["0", "2"]),
        (2, ["2"]),
        ("[0, 2]", ["0", "2"]),
        ("idrid", ["idrid"]),
    ],
)
def test_environments_are_numbers_or_names_with_a_comma_for_one_run(value, runs):
    assert resolve([RunSettings], [Layer("command line", {"test_envs": value})]).values["test_envs"] == runs


@pytest.mark.parametrize("value", ["0 1 2", ["0", "1", "2"], [0, 1, 2], "[0, 1, 2]"])
def test_seeds_are_whole_numbers_in_any_notation(value):
    assert resolve([RunSettings], [Layer("command line", {"seeds": value})]).values["seeds"] == [0, 1, 2]


@pytest.mark.parametrize("value", ["a", "0 -1", True, [0.5]])
def test_other_seeds_are_refused(value):
    with pytest.raises(UserError, match="seeds = .* is not a list of whole numbers, such as 0 1 2"):
        resolve([RunSettings], [Layer("command line", {"seeds": value})])


def test_yaml_is_read_and_an_empty_file_is_empty(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("steps: 5\n# note\nlr: 1e-4\n", encoding="utf-8")
    assert read_yaml(path) == {"steps": 5, "lr": "1e-4"}  # YAML 1.1 takes 1e-4 for a text; resolve does not
    path.write_text("a: {b: &b {<<: &c {lr: 1}, lr: 2}}\nx: {<<: *b, lr: 3}\ny: {lr: 4}\n", encoding="utf-8")
    assert read_yaml(path) == {"a": {"b": {"lr": 2}}, "x": {"lr": 3}, "y": {"lr": 4}}  # merged, not twice
    path.write_text("# nothing\n", encoding="utf-8")
    assert read_yaml(path) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1\n", "is not valid YAML"),
        (b"- a\n- b\n", "must hold lines of the form 'key: value', but holds list"),
        (b"1: 2\n", "must hold lines of the form 'key: value' with the name of a setting as key, but one key is 1."),
        (b"a: 1\nnull: 2\n", "but one key is None. Write a name there"),
        (b"lr: 1\nsteps: 2\nlr: 3\n", "a.yaml, line 3: the key 'lr' stands in line 1 already. Keep one"),
        (b"a: {lr: 1, lr: 1}\n", "a.yaml, line 1: the key 'lr' stands in line 1 already. Keep one"),
        (b"a:\n  b:\n  - lr: 1\n    'lr': 2\n", "a.yaml, line 4: the key 'lr' stands in line 3 already. Keep one"),
        (b"\xff\xfe\x00", "is not a text file in UTF-8"),
        (b"a: !!python/object/apply:os.system ['true']\n", "is not valid YAML"),
        (None, "Give the path of a YAML file"),
    ],
)
def test_a_file_that_is_no_mapping_is_one_line_with_its_path(tmp_path, content, message):
    path = tmp_path / "a.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        read_yaml(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


class Lists(HParams):
    """Settings of every kind of list."""

    numbers: Literal["none"] | list[NonNegativeFloat] = Field("none", description="numbers")
    counts: list[PositiveInt] | None = Field(None, description="counts")
    names: Names = Field([], description="names")
    pair: tuple[int, str] = Field((0, "a"), description="a pair")
    place: Path = Field(Path("here"), description="a path")
    places: list[Path] = Field([], description="paths")
    perhaps: Path | None = Field(None, description="a path or none")
    word: str = Field("", description="text")


@pytest.mark.parametrize(
    ("key", "texts", "value"),
    [
        ("numbers", ["1,2.5,3", "1, 2.5, 3", "1 2.5 3", "[1, 2.5, 3]", [1, 2.5, 3], ["1,2.5", "3"]], [1.0, 2.5, 3.0]),
        ("numbers", ["2", 2, "[2]", [2]], [2.0]),
        ("numbers", ["none"], "none"),
        ("counts", ["1,2", "1 2", ["1", "2"], "[1, 2]", " 1 , 2 ,"], [1, 2]),
        ("counts", ["null", "None", None], None),
        ("names", ["a b,c", "a b, c", "[a b, c]", ["a b", "c"]], ["a b", "c"]),
        ("names", [["a,b"], '["a,b"]'], ["a,b"]),  # what a file has as an item is one
        ("pair", ["3,4", [3, "4"], "[3, '4']"], (3, "4")),
        ("places", ["a b,c", ["a b", "c"]], [Path("a b"), Path("c")]),
        ("word", ["[1, 2", "a,b", "1,5"], None),
    ],
)
def test_a_list_is_written_with_commas_brackets_or_as_yaml_has_it(key, texts, value):
    for text in texts:
        read = resolve([Lists], [Layer("command line", {key: text})]).values[key]
        assert read == (text if value is None and key == "word" else value), text


def test_a_path_is_expanded_whatever_says_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for text, path in (("~", tmp_path), ("~/a b/", tmp_path / "a b"), ("$HOME/x", Path("$HOME/x")), ("a~", Path("a~"))):
        values = resolve([Lists], [Layer("file", {"place": text, "perhaps": text, "places": [text]})]).values
        assert values["place"] == values["perhaps"] == path and values["places"] == [path]
    settings = [(RunSettings, key) for key in ("data_dir", "results_dir", "cache_dir")]
    settings += [(VAE_DG.HParams, "pretrained"), (LatentClassifier.HParams, "encoder_run")]
    for model, key in settings:
        assert str(resolve([model], [Layer("file", {key: "~/x"})]).values[key]) == str(tmp_path / "x"), key
    assert resolve([RunSettings], [Layer("file", {"plugin": "~/x.py"})]).values["plugin"] == [tmp_path / "x.py"]
    assert resolve([VAE_DG.HParams], [Layer("file", {"pretrained": "Auto"})]).values["pretrained"] == "auto"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        ("a\nb", "control character"),
        ("a\0b", "control"),
        ("~nobody9/x", "~nobody9"),
    ],
)
def test_what_can_be_no_path_is_refused_with_its_key(text, says):
    for key in ("place", "perhaps"):
        with pytest.raises(UserError, match=f"command line: {key} = .* is not a path") as raised:
            resolve([Lists], [Layer("command line", {key: text})])
        assert says in str(raised.value)


@pytest.mark.parametrize(
    ("key", "text", "hint"),
    [
        ("rate", "1,5", "write 1.5, with a point"),
        ("steps", "10,000", "write 10000, without a comma"),
        ("steps", "5k", ""),
    ],
)
def test_a_number_with_a_comma_is_told_how_it_is_written(key, text, hint):
    assert hint in fault(**{key: text}) and f"{key} = {text!r} is not a" in fault(**{key: text})


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("on", True), ("1", True), ("no", False), ("Off", False)])
def test_a_flag_may_be_a_word(text, value):
    assert from_command_line(quick=text)["quick"] is value
    assert from_command_line(steps="1_000")["steps"] == 1000
