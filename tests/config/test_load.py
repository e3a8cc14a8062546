import datetime
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.cli.line import EXAMPLES
from edgekd.config.load import apply_overrides, load_config, parse_yaml, validate
from edgekd.config.schema import Config
from edgekd.errors import EdgekdError, UsageError


def config_from(text: str) -> Config:
    value, lines = parse_yaml(text, where="c.yaml")
    return validate(value, where="c.yaml", lines=lines)


def error_of(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        config_from(text)
    return str(caught.value)


def test_an_empty_file_is_the_default_configuration():
    assert config_from("") == Config()


def test_the_bundled_example_is_valid_and_names_its_schema_fields():
    config = load_config(EXAMPLES / "digits.yaml")
    assert config.name == "digits"
    assert config.distill.methods.entries[0].name == "kd"


def test_a_resolved_configuration_reads_back_to_itself():
    config = load_config(EXAMPLES / "digits.yaml")
    assert validate(config.model_dump(mode="json"), where="x", lines={}) == config


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("data:\n  sorce: digits\n", ["c.yaml:2", "data.sorce", "did you mean 'source'"]),
        ("\n\ndta: {}\n", ["c.yaml:3", "dta", "did you mean 'data'"]),
        ("distill:\n  epochs: ten\n", ["c.yaml:2", "distill.epochs", "integer", "'ten'"]),
        ("distill: 3\n", ["c.yaml:1", "distill"]),
        ("distill:\n  methods:\n    - kdd\n", ["c.yaml:3", "unknown method 'kdd'", "'kd'"]),
        ("distill:\n  methods:\n    - kd: {temp: 3}\n", ["c.yaml:3", "kd.temp", "temperature"]),
        ("distill:\n  methods:\n    - kd: {temperature: 0}\n", ["c.yaml:3", "greater than 0"]),
        ("distill:\n  methods: [kd, kd]\n", ["c.yaml:2", "twice"]),
        ("distill: {alpha: 0, methods: []}\n", ["c.yaml:1", "no loss"]),
        ("gate:\n  budgets:\n    - {metric: speedup}\n", ["c.yaml:3", "exactly one of"]),
        (
            "gate:\n  budgets:\n    - {metric: latency_p50, min: 20 ms}\n",
            ["c.yaml:3", "lower is better of latency_p50: write max, not min"],
        ),
        (
            "gate:\n  budgets:\n    - {metric: miou, max: 90 %}\n",
            ["c.yaml:3", "higher is better of miou: write min, not max"],
        ),
        ("name: tü\n", ["c.yaml:1", "name: should be at most 100 of a-z", "'tü'"]),
        (
            "gate:\n  budgets:\n    - {metric: sise, max: 1 B}\n",
            ["c.yaml:3: gate.budgets.0.metric: no metric 'sise'; did you mean 'size'?"],
        ),
        (
            "gate:\n  budgets:\n    - {metric: user.a b, max: 1}\n",
            ["c.yaml:3: gate.budgets.0.metric: 'user.a b' should be user.NAME"],
        ),
        (
            "gate:\n  budgets:\n    - {metric: size, max: [1]}\n",
            ["c.yaml:3: gate.budgets.0.max: should be a number, with its unit"],
        ),
        (
            "gate:\n  budgets:\n    - {metric: latency_p50, max: 0 ms}\n",
            ["c.yaml:3", "'0 ms' can never be a limit of latency_p50"],
        ),
        (
            "gate:\n  budgets:\n    - {metric: latency_p50, max: 20}\n",
            ["c.yaml:3", "unit", "20 ms"],
        ),
        ("teacher:\n  args: {}\nteacher: {}\n", ["c.yaml:3", "twice"]),
        ("a: [\n", ["c.yaml:2", "not valid YAML"]),
        ("- 1\n", ["should be a mapping"]),
        ("&a [*a]\n", ["c.yaml:1", "contains itself"]),
        ("1: x\n", ["c.yaml:1", "should be text"]),
        ("seed: 2020-01-01\n", ["c.yaml:1", "date", "quotes"]),
        ("seed: .nan\n", ["c.yaml:1", "not a finite number"]),
        ("seed: true\n", ["c.yaml:1", "seed", "integer"]),
        ("name: ../../etc\n", ["c.yaml:1", "name", "should be at most 100 of"]),
        ("export: {formats: [onnx, onnx]}\n", ["c.yaml:1", "twice"]),
        ("profile: {min_seconds: 3, max_seconds: 2}\n", ["c.yaml:1", "smaller"]),
        ("data: {image_size: [0, 5]}\n", ["c.yaml:1", "between 1 and 4096"]),
        ("a: !!timestamp zz\n", ["c.yaml:1", "not a valid"]),
        ("a: !!python/object/apply:os.system [ls]\n", ["c.yaml"]),
    ],
)
def test_an_error_says_file_line_key_and_what_would_be_right(text, parts):
    message = error_of(text)
    for part in parts:
        assert part in message


def test_all_problems_are_listed_at_once():
    message = error_of("data:\n  limit: 1\ndistill:\n  epochs: 0\n")
    assert "2 problems" in message
    assert "c.yaml:2: data.limit" in message
    assert "c.yaml:4: distill.epochs" in message


def test_scientific_notation_without_a_dot_is_a_number():
    assert config_from("verify: {tolerance: 1e-3}").verify.tolerance == 1e-3


def test_merge_keys_work():
    config = config_from("teacher: {train: &t {epochs: 7}}\ndistill: {<<: *t, alpha: 0.5}\n")
    assert config.distill.epochs == 7


def test_missing_binary_and_unreadable_files_are_one_clear_error(tmp_path):
    for path, content in (("missing.yaml", None), ("binary.yaml", b"\xff\xfe\x00")):
        if content is not None:
            (tmp_path / path).write_bytes(content)
        with pytest.raises(UsageError) as caught:
            load_config(tmp_path / path)
        assert path in str(caught.value)
    with pytest.raises(UsageError, match="cannot be read"):
        load_config(tmp_path)


def test_a_file_of_a_megabyte_is_not_a_configuration(tmp_path):
    path = tmp_path / "big.yaml"
    path.write_text("#" * 1_000_001)
    with pytest.raises(UsageError, match="too large"):
        load_config(path)


def test_a_billion_laughs_are_refused():
    rows = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for previous, name in zip("abcdefgh", "bcdefghi", strict=True):
        rows.append(f"{name}: &{name} [{', '.join(['*' + previous] * 10)}]")
    with pytest.raises(UsageError, match="too many keys"):
        parse_yaml("\n".join(rows), where="c.yaml")


class TestOverrides:
    def test_a_dotted_key_reaches_into_sections_and_lists(self):
        value = {"distill": {"methods": [{"kd": {"temperature": 4}}]}, "seed": 1}
        result = apply_overrides(value, ["distill.methods.0.kd.temperature=2", "name=x"])
        assert result["distill"]["methods"][0]["kd"]["temperature"] == 2
        assert result["name"] == "x"
        assert value["distill"]["methods"][0]["kd"]["temperature"] == 4

    def test_a_section_that_is_not_there_is_made(self):
        assert apply_overrides({}, ["data.augment.crop=2"]) == {"data": {"augment": {"crop": 2}}}

    @pytest.mark.parametrize("override", ["x", "=3", "seed.x=3", "l.9=1", "l.a=1", "a=[", "a=.inf"])
    def test_a_malformed_override_is_refused(self, override):
        with pytest.raises(UsageError, match="--set"):
            apply_overrides({"seed": 1, "l": [1]}, [override])


_leaf = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.dates()
    | st.binary(max_size=4)
)
_sections = list(Config.model_fields)
_keys = st.sampled_from(
    [*_sections, "source", "methods", "kd", "temperature", "budgets", "metric", "max", "args",
     "train", "augment", "formats", "targets", "image_size", "weights", "model", ""]
) | st.text(max_size=6)  # fmt: skip
_tree = st.recursive(
    _leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(_keys, _tree, max_size=4))
def test_a_random_configuration_is_valid_or_one_edgekd_error(value):
    text = yaml.safe_dump(value, allow_unicode=True)
    try:
        config_from(text)
    except EdgekdError as error:
        assert error.exit_code == 2
        assert str(error)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!|>%@'\"\\#,?\n\t 01.e~<", max_size=60))
def test_random_text_is_a_mapping_or_one_edgekd_error(text):
    try:
        value, _ = parse_yaml(text, where="c.yaml")
    except EdgekdError as error:
        assert error.exit_code == 2
        return
    assert isinstance(value, dict)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(_sections), _tree)
def test_a_random_section_is_valid_or_one_edgekd_error(section, value):
    try:
        validate({section: value}, where="config", lines={})
    except EdgekdError as error:
        assert error.exit_code == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["depth"], r"c: export\.dynamic\.0: input should be 'batch', .* not 'depth'"),
        ({"x": 3}, r"c: export\.dynamic\.x: input should be a valid list, not 3"),
        ({"x": ["a-b"]}, r"c: export\.dynamic\.x\.0: string should match pattern .*, not 'a-b'"),
        (
            "batch",
            r"c: export\.dynamic: input should be a valid list, or a valid dictionary, not 'batch'",
        ),
    ],
)
def test_of_several_kinds_only_the_one_that_fits_best_is_spoken_of(value, message):
    with pytest.raises(UsageError) as told:
        validate({"export": {"dynamic": value}}, where="c", lines={})
    assert re.fullmatch(message, str(told.value))


def test_python_only_values_are_refused_in_arguments():
    with pytest.raises(UsageError, match="numbers, texts"):
        validate(
            {"teacher": {"args": {"when": datetime.date(2020, 1, 1)}}}, where="config", lines={}
        )


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        (
            "distill.knowledge.top_k",
            0,
            "top_k: input should be greater than or equal to 1, or 'auto'",
        ),
        (
            "export.dynamic",
            3,
            "dynamic: input should be a valid list, or a valid dictionary, not 3",
        ),
        (
            "distill.scheme.online.peers",
            0.5,
            "online.peers: input should be a valid integer, or a valid list, not 0.5",
        ),
        ("distill.scheme.assistant", {}, "assistant.chain: this key is required"),
        (
            "distill.scheme.ensemble.members",
            "zoo:vit",
            "ensemble.members: should be a number, or a list of networks",
        ),
        (
            "distill.scheme.ensemble.members",
            [{"model": "zoo:vit", "weight": "x.pt"}],
            "ensemble.members.0.weight: unknown key",
        ),
        (
            "distill.scheme.ensemble.members",
            ["zoo:vit", "records:x.npz"],
            "ensemble.members.1.model: records: is for teachers, which are not trained",
        ),
        (
            "distill.scheme.assistant.chain",
            ["onnx:x.onnx"],
            "assistant.chain.0.model: onnx: is for teachers, which are not trained",
        ),
        ("student", "oips://localhost:1/x", "student.model: oips: is for teachers"),
    ],
)
def test_of_a_value_of_several_kinds_one_problem_is_told(key, value, text):
    given = value
    for name in reversed(key.split(".")):
        given = {name: given}
    with pytest.raises(UsageError) as caught:
        validate(given, where="c.yaml", lines={})
    assert str(caught.value).startswith("c.yaml: ")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
