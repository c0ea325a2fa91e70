"""The commands that `start-api` runs."""

from pathlib import Path

from handler.start_api import build_command, serve_command
from infra.settings import Settings


def test_the_build_is_for_the_machine_that_runs_it() -> None:
    said = " ".join(build_command("x86_64"))

    assert said == "sam build --build-dir .aws-sam/local --parameter-overrides Architecture=x86_64"


def test_the_server_is_local_and_warm_and_its_containers_get_the_engine() -> None:
    settings = Settings(port=3000, region="eu-west-1")

    said = " ".join(serve_command("arm64", settings, Path("variables.json"), ["--debug"]))

    assert said == (
        "sam local start-api --template .aws-sam/local/template.yaml "
        "--parameter-overrides Architecture=arm64 --host 127.0.0.1 --port 3000 --region eu-west-1 "
        "--warm-containers EAGER --env-vars variables.json --debug"
    )
