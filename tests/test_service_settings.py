"""`config.yml` of Dell's service: each key is read, each fault is named, and nothing it hides is shown."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from gpt2chat.cli.config import service_of, service_option
from gpt2chat.errors import ConfigError
from gpt2chat.server.settings import LARGEST, ServiceFile, is_service_file, read_service

GUIDE = """chatbot_args:
  model_path: "meta-llama/Llama-2-7b-hf"
  max_new_tokens: 500
  max_padding_length: 4096
  data_type: "torch.bfloat16"
  port: 7860
other_args:
  hf_token: ""
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.yml"


def read(config: Path, text: str, **environ: str) -> ServiceFile:
    config.write_text(text)
    return read_service(config, environ)


def one(section: str, key: str, value: str) -> str:
    return f"{section}:\n  {key}: {value}\n"


# -- what is read ------------------------------------------------------------------------------------------------------


def test_the_file_of_the_guide_is_read_as_it_stands(config: Path) -> None:
    found = read(config, GUIDE)
    assert found == ServiceFile(config, "meta-llama/Llama-2-7b-hf", 500, 4096, "bfloat16", 7860)
    assert found.log == config.with_name("app.log")


@pytest.mark.parametrize("text", ["other_args:\n  hf_token:\n", "chatbot_args:\n  # port: 1\n", "chatbot_args: {}\n"])
def test_what_is_left_out_is_as_in_the_guide_but_the_model_is_the_one_that_is_here(config: Path, text: str) -> None:
    assert read(config, text) == ServiceFile(config, "demo", 500, 4096, "bfloat16", 7860)


@pytest.mark.parametrize("prefix", ["", "torch."])
@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_types_are_read_with_torch_and_without(config: Path, prefix: str, name: str) -> None:
    assert read(config, one("chatbot_args", "data_type", f'"{prefix}{name}"')).dtype == name


@pytest.mark.parametrize("port", [0, 1, 65535])
def test_a_port_is_from_0_to_65535(config: Path, port: int) -> None:
    assert read(config, one("chatbot_args", "port", str(port))).port == port


def test_other_ways_to_write_the_same_yaml(config: Path) -> None:
    texts = (
        '\ufeff{"chatbot_args": {"port": 80, "data_type": "auto"}}',
        "---\n# a comment\nchatbot_args: {port: 80, data_type: auto}\n...\n",
        "chatbot_args:\r\n  port: 80 # here\r\n  data_type: 'auto'\r\n",
    )
    for text in texts:
        found = read(config, text)
        assert (found.port, found.dtype) == (80, "auto"), text


# -- faults ------------------------------------------------------------------------------------------------------------

WRONG = [
    ("chatbot_args", "port", "80x", "a whole number from 0 to 65535, found '80x'"),
    ("chatbot_args", "port", "65536", "a whole number from 0 to 65535, found '65536'"),
    ("chatbot_args", "port", "-1", "a whole number from 0 to 65535, found '-1'"),
    ("chatbot_args", "port", '"7860"', "a whole number from 0 to 65535, found '7860'"),
    ("chatbot_args", "port", "true", "a whole number from 0 to 65535, found 'true'"),
    ("chatbot_args", "port", "12:30", "a whole number from 0 to 65535, found '12:30'"),
    ("chatbot_args", "port", "0x1EB4", "a whole number from 0 to 65535, found '0x1EB4'"),
    ("chatbot_args", "port", "7_860", "a whole number from 0 to 65535, found '7_860'"),
    ("chatbot_args", "port", "7860.0", "a whole number from 0 to 65535, found '7860.0'"),
    ("chatbot_args", "port", "[7860]", "a whole number from 0 to 65535, found a list"),
    ("chatbot_args", "port", "", "a whole number from 0 to 65535, found nothing"),
    ("chatbot_args", "max_new_tokens", "0", "a whole number of 1 or more, found '0'"),
    ("chatbot_args", "max_new_tokens", "yes", "a whole number of 1 or more, found 'yes'"),
    ("chatbot_args", "max_padding_length", "-4096", "a whole number of 1 or more, found '-4096'"),
    ("chatbot_args", "max_padding_length", "9" * 400, f"a whole number of 1 or more, found '{'9' * 57}…'"),
    ("chatbot_args", "model_path", "", "a text in quotes, found nothing"),
    ("chatbot_args", "model_path", '""', "a text in quotes, found ''"),
    ("chatbot_args", "model_path", "124", "a text in quotes, found '124'"),
    ("chatbot_args", "model_path", "{a: b}", "a text in quotes, found a mapping"),
    ("chatbot_args", "model_path", "!!python/object/apply:os.system [ls]", "a text in quotes, found a list"),
    ("chatbot_args", "data_type", "torch.int8", "one of torch.float32, torch.float16, torch.bfloat16, auto, found"),
    ("chatbot_args", "data_type", "16", "a text in quotes, found '16'"),
]


@pytest.mark.parametrize(("section", "key", "value", "words"), WRONG)
def test_a_wrong_value_is_named_with_its_key(config: Path, section: str, key: str, value: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(config, one(section, key, value))
    assert str(caught.value).startswith(f"{config}: {section}.{key}: expected {words}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["[hf_secret]", "hf_secret b", '"hf_secret\\n"', "{hf_secret: 1}"])
def test_a_wrong_token_is_not_shown(config: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"other_args\.hf_token: expected a token") as caught:
        read(config, one("other_args", "hf_token", value))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file: expected keys such as chatbot_args:, found nothing"),
        ("# nothing\n", "the file: expected keys such as chatbot_args:, found nothing"),
        ("- 1\n", "the file: expected keys such as chatbot_args:, found a list"),
        ("hello\n", "the file: expected keys such as chatbot_args:, found 'hello'"),
        ("chatbot_args: 5\n", "chatbot_args: expected keys such as model_path:, found '5'"),
        ("chatbot_args: [a]\n", "chatbot_args: expected keys such as model_path:, found a list"),
        ("other_args: x\n", "other_args: expected keys such as hf_token:, found something else"),
        ("chatbot_arg:\n  port: 1\n", "line 1: 'chatbot_arg': expected a key of the service"),
        (
            "chatbot_args:\n  prot: 1\n",
            "line 2: chatbot_args.'prot': expected a key of the service, found none of that",
        ),
        ("chatbot_args:\n  prot: 1\n", "did you mean port?"),
        ("chatbot_args:\n  zzz: 1\n", "there are model_path, max_new_tokens"),
        ("chatbot_args:\n  ? [a]\n  : 1\n", "line 2: chatbot_args."),
        ("chatbot_args:\n  port: 1\n  port: 2\n", "line 3: chatbot_args.'port': expected it once, found it twice"),
        ("chatbot_args: {}\nchatbot_args: {}\n", "line 2: 'chatbot_args': expected it once, found it twice"),
        ("chatbot_args:\n  port: [1\n", "line 3: expected YAML: "),
        ("chatbot_args:\n\tport: 1\n", "line 2: expected YAML: found character '\\t'"),
        ("chatbot_args: {}\n---\nother_args: {}\n", "line 2: expected YAML: "),
        ("chatbot_args:\n  model_path: a\x07b\n", "line 2: expected YAML, found a character that it does not allow"),
        ("chatbot_args: &a {port: 1}\n", "line 1: expected plain keys, found an anchor or alias"),
        ("other_args: *a\n", "line 1: expected plain keys, found an anchor or alias"),
        ("a: " + "[" * 20000, "line 1: expected plain keys, found more than 8 levels"),
        ("#" * LARGEST + "\n", "expected at most 64 KiB of settings, found more"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(config: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(config, text)
    assert str(caught.value).startswith(f"{config}: ") and words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_or_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "latin.yml").write_bytes(b"chatbot_args:\n  model_path: caf\xe9\n")
    for name, words in (("none.yml", "No such file"), ("latin.yml", "expected UTF-8, found the byte 0xe9")):
        with pytest.raises(ConfigError, match=words):
            read_service(tmp_path / name, {})
    with pytest.raises(ConfigError, match="cannot be read"):
        read_service(tmp_path, {})


# -- the model's place -------------------------------------------------------------------------------------------------


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """A folder with a checkpoint in it."""
    (tmp_path / "training" / "run1" / "checkpoint1").mkdir(parents=True)
    return tmp_path / "training"


CHECKPOINT = one("chatbot_args", "model_path", "run1/checkpoint1")


def test_a_path_is_within_the_training_folder_of_the_environment(config: Path, training: Path) -> None:
    place = str(training / "run1" / "checkpoint1")
    assert read(config, CHECKPOINT, TRAINING_DIR=str(training)).model == place
    (config.parent / ".env").write_text("TRAINING_DIR=/nowhere\n")
    assert read(config, CHECKPOINT, TRAINING_DIR=str(training)).model == place


@pytest.mark.parametrize(
    "line",
    [
        "TRAINING_DIR=./training",
        "TRAINING_DIR=training # mine",
        "export TRAINING_DIR = 'training'",
        '  TRAINING_DIR="training"  # mine',
        "# TRAINING_DIR=/nowhere\nOTHER=what ever\nnot even this\nTRAINING_DIR=training\n",
    ],
)
@pytest.mark.parametrize("beside", [True, False])
def test_a_path_is_within_the_training_folder_of_an_env_file(
    config: Path, training: Path, line: str, beside: bool
) -> None:
    folder = config.parent if beside else Path()
    (folder / ".env").write_text(line if beside else line.replace("./", "").replace("training", str(training)))
    assert Path(read(config, CHECKPOINT).model) == training / "run1" / "checkpoint1"


def test_the_env_file_beside_the_config_wins_over_the_one_of_the_working_directory(
    config: Path, training: Path
) -> None:
    (config.parent / ".env").write_text("TRAINING_DIR=training\n")
    Path(".env").write_text("TRAINING_DIR=/nowhere\n")
    assert read(config, CHECKPOINT).model == str(training / "run1" / "checkpoint1")


@pytest.mark.parametrize("name", ["demo", "gpt2", "gpt2-small (124M)", "distilbert/distilgpt2"])
def test_what_is_no_place_there_is_a_name(config: Path, training: Path, name: str) -> None:
    for made in ("demo", "gpt2"):  # folders that only happen to have such a name
        (training / made).mkdir()
    text = one("chatbot_args", "model_path", f'"{name}"')
    assert read(config, text, TRAINING_DIR=str(training)).model == name
    assert read(config, text, TRAINING_DIR="./").model == name
    assert read(config, text).model == name


def test_a_place_that_is_not_there_is_named_with_the_folder(config: Path, training: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(config, one("chatbot_args", "model_path", "run1/of/mine"), TRAINING_DIR=str(training))
    expected = f"a model's name, or a place in TRAINING_DIR ({training}), found 'run1/of/mine'"
    assert str(caught.value) == f"{config}: chatbot_args.model_path: expected {expected}"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("TRAINING_DIR: here", "line 1: expected TRAINING_DIR=VALUE, found no '='"),
        ("\nTRAINING_DIR='here", "line 2: expected a closing quote, found none"),
    ],
)
def test_a_fault_of_the_env_file_is_named(config: Path, line: str, words: str) -> None:
    (config.parent / ".env").write_text(line)
    with pytest.raises(ConfigError) as caught:
        read(config, GUIDE)
    assert str(caught.value) == f"{config.parent / '.env'}: {words}"


# -- secrets -----------------------------------------------------------------------------------------------------------


def test_token_and_key_are_kept_and_not_shown(config: Path) -> None:
    (config.parent / ".env").write_text("GPT2CHAT_API_KEY=s3cret-key\n")
    found = read(config, one("other_args", "hf_token", "hf_s3cret"))
    assert (found.hf_token, found.api_key) == ("hf_s3cret", "s3cret-key")
    assert "s3cret" not in repr(found) + str(found)
    assert read(config, GUIDE, GPT2CHAT_API_KEY="other").api_key == "other"


def test_the_hub_takes_the_token_and_keeps_its_own_without_one(config: Path) -> None:
    environ = {"HF_TOKEN": "hf_own"}
    read(config, GUIDE).use_token(environ)
    assert environ == {"HF_TOKEN": "hf_own"}
    read(config, one("other_args", "hf_token", "hf_new")).use_token(environ)
    assert environ == {"HF_TOKEN": "hf_new"}


# -- the command line --------------------------------------------------------------------------------------------------


@click.command()
@service_option
@click.argument("checkpoint", required=False)
@click.option("-p", "--port", type=int, default=8000)
@click.option("-m", "--max-tokens", type=int, default=512)
@click.option("-d", "--dtype", default="auto")
@click.option("--log-prompts", type=click.Path(path_type=Path), is_flag=False, flag_value=Path("app.log"))
@click.option("--api-key", envvar="GPT2CHAT_API_KEY")
@click.pass_context
def tiny(context: click.Context, **options: object) -> None:
    service = service_of(context)
    longest = service.max_length if service else None
    click.echo(f"{options} {longest}")


def said(*words: object) -> Result:
    return CliRunner().invoke(tiny, [str(word) for word in words])


def test_the_command_line_wins_over_config_yml(config: Path) -> None:
    config.write_text(GUIDE.replace("4096", "100"))
    log = config.with_name("app.log")
    options = {"port": 7860, "max_tokens": 500, "dtype": "bfloat16", "log_prompts": log}
    shown = {**options, "checkpoint": "meta-llama/Llama-2-7b-hf", "api_key": None}
    result = said("--config", config)
    assert result.exit_code == 0, result.output
    assert eval(result.output.rsplit(" ", 1)[0], {"PosixPath": Path, "WindowsPath": Path}) == shown
    assert result.output.split()[-1] == "100"
    result = said("demo", "-p", 9, "--config", config, "--log-prompts", "other.log", "-d", "float32")
    for words in ("'checkpoint': 'demo'", "'port': 9", "other.log", "'dtype': 'float32'", "'max_tokens': 500"):
        assert words in result.output


def test_options_in_toml_are_taken_by_the_same_option(tmp_path: Path) -> None:
    place = tmp_path / "serve.toml"
    place.write_text('port = 81\nmax_tokens = 7\nlog_prompts = "mine.log"\n')
    result = said("--config", place)
    assert "'port': 81" in result.output and "'max_tokens': 7" in result.output and str(tmp_path) in result.output
    assert result.output.split()[-1] == "None"


def test_a_fault_of_config_yml_is_one_line_and_exit_code_2(config: Path) -> None:
    config.write_text(one("chatbot_args", "port", "80x"))
    result = said("--config", config)
    assert result.exit_code == 2
    expected = "chatbot_args.port: expected a whole number from 0 to 65535, found '80x'"
    assert result.output.splitlines() == [f"error: {config}: {expected}"]


def test_a_token_goes_to_the_hub_and_nowhere_else(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("HF_TOKEN", "before")  # so that it is put back
    config.write_text(one("other_args", "hf_token", "hf_s3cret"))
    result = said("--config", config)
    assert result.exit_code == 0 and "s3cret" not in result.output
    assert os.environ["HF_TOKEN"] == "hf_s3cret"


@pytest.mark.parametrize(
    ("name", "text", "is_one"),
    [
        ("config.yml", "", True),
        ("settings.YAML", "", True),
        ("settings", GUIDE, True),
        ("settings", f"# first\n{GUIDE}", True),
        ("settings", '{"chatbot_args": {}}', True),
        ("settings.json", '{\n  "chatbot_args": {}}', True),
        ("serve.toml", 'port = 1\nname = "chatbot_args"', False),
        ("serve.toml", "[chatbot_args]\nport = 1", False),
        ("serve.json", '{"port": 1}', False),
    ],
)
def test_a_service_file_is_known_by_its_ending_or_its_content(
    tmp_path: Path, name: str, text: str, is_one: bool
) -> None:
    (tmp_path / name).write_text(text)
    assert is_service_file(tmp_path / name) is is_one


def test_a_file_that_is_not_there_is_none() -> None:
    assert not is_service_file(Path("none.toml"))
