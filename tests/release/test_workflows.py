"""The workflows: they call make targets that exist, ask for little, and keep secrets from changes of strangers."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".gitea/workflows").glob("*.yaml"))


def read(path: Path) -> dict[str, Any]:
    # YAML 1.1 reads the key `on` as true.
    return {"on" if key is True else key: value for key, value in yaml.safe_load(path.read_text()).items()}


def steps(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for job in own(workflow):
        yield from job["steps"]


def own(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """Its jobs but those that are another workflow of ours."""
    return [job for job in workflow["jobs"].values() if "uses" not in job]


def commands(name: str, only: str = "") -> list[str]:
    """What a workflow runs, or one of its jobs."""
    jobs = read(ROOT / f".gitea/workflows/{name}.yaml")["jobs"]
    wanted = [job for name, job in jobs.items() if only in ("", name)]
    return [step["run"] for job in wanted for step in job["steps"] if "run" in step]


def targets() -> list[str]:
    called = {step["run"] for path in WORKFLOWS for step in steps(read(path)) if "run" in step}
    return sorted(command.removeprefix("make ") for command in called)


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request: pytest.FixtureRequest) -> dict[str, Any]:
    return read(request.param)


def test_every_command_is_one_make_target(workflow: dict[str, Any]) -> None:
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step)
        if "run" in step:
            assert re.fullmatch(r"make [a-z0-9/-]+", step["run"])


def test_every_target_exists() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    made = subprocess.run(
        ["make", "--dry-run", "--keep-going", "--old-file=.venv/.installed", *targets()],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr


def test_actions_are_official_and_pinned_by_major_version(workflow: dict[str, Any]) -> None:
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(
                r"actions/(checkout|setup-python|setup-go|cache|(up|down)load-artifact)@v\d+", step["uses"]
            )


def test_artifacts_are_taken_by_the_version_that_gitea_has(workflow: dict[str, Any]) -> None:
    for step in steps(workflow):
        if "artifact" in step.get("uses", ""):
            assert step["uses"].endswith("@v3")


def test_tools_are_kept_for_as_long_as_their_pins_are_the_same(workflow: dict[str, Any]) -> None:
    ran = {step.get("run") for step in steps(workflow)}
    kept = [step["with"] for step in steps(workflow) if step.get("uses", "").startswith("actions/cache@")]
    key = "tools-${{ runner.os }}-${{ runner.arch }}-${{ hashFiles('tools/release/go/**/go.sum') }}"
    assert kept == ([{"path": "build/tools", "key": key}] if ran & {"make scan", "make scan-released"} else [])


def test_each_has_permissions_concurrency_and_time_limits(workflow: dict[str, Any]) -> None:
    assert workflow["permissions"]["contents"] in ("read", "write")
    assert workflow["concurrency"]["group"]
    assert all(0 < job["timeout-minutes"] <= 180 for job in own(workflow))


def test_secrets_reach_single_steps_by_their_environment_and_no_pull_request(workflow: dict[str, Any]) -> None:
    assert "pull_request_target" not in workflow["on"]
    for job in own(workflow):
        for step in job["steps"]:
            given = step.pop("env", {})
            if "secrets." in yaml.safe_dump(given) and "pull_request" in workflow["on"]:
                assert step["if"].startswith("github.ref_type == 'tag' && ")
    assert "secrets." not in yaml.safe_dump(workflow)  # but for those of a tag, which a called workflow inherits


def test_nothing_of_an_event_becomes_part_of_a_command(workflow: dict[str, Any]) -> None:
    assert not [step["run"] for step in steps(workflow) if "${{" in step.get("run", "")]


@pytest.mark.parametrize("name", ["lint", "test", "images"])
def test_changes_and_the_main_branch_are_checked(name: str) -> None:
    events = read(ROOT / f".gitea/workflows/{name}.yaml")["on"]
    assert "pull_request" in events
    assert events["push"]["branches"] == ["main"]


PUSHED = "github.ref_type == 'tag' && vars.IMAGE_PREFIX != ''"


def test_a_tag_s_images_are_pushed_as_candidates_and_named_by_it_after_all_checks_of_what_was_pushed() -> None:
    workflow = read(ROOT / ".gitea/workflows/images.yaml")
    conditions = {step["run"]: step.get("if") for step in steps(workflow) if "run" in step}
    both = ["make image-unit-test", "make image-test", "make image-report", "make sbom", "make scan"]
    assert [command for command, condition in conditions.items() if condition is None] == both
    assert [command for command, condition in conditions.items() if condition in (None, PUSHED)] == [
        "make signing-check", "make registry-login", "make bake", "make image-unit-test", "make pull-images",
        "make image-test", "make image-report", "make sbom", "make verify-pushed", "make scan", "make sign",
        "make promote",
    ]  # fmt: skip
    assert conditions["make release-check"] == "github.ref_type == 'tag'"
    assert conditions["make images"] == "github.ref_type != 'tag' || vars.IMAGE_PREFIX == ''"
    assert next(iter(conditions)) == "make release-check"
    assert "candidate-{0}" in workflow["env"]["PUSHED_AS"]
    assert "tags" not in workflow["on"]["push"]  # release.yaml calls it for those


def test_images_are_signed_with_the_key_that_was_tried_and_keyless_only_if_asked_for() -> None:
    workflow = read(ROOT / ".gitea/workflows/images.yaml")
    given = {step["run"]: step["env"] for step in steps(workflow) if "run" in step and "env" in step}
    assert given["make signing-check"] == given["make sign"]
    assert given["make sign"]["COSIGN_KEY"] == "${{ secrets.COSIGN_PRIVATE_KEY && 'env://COSIGN_PRIVATE_KEY' || '' }}"
    assert given["make sign"]["COSIGN_KEYLESS"] == "${{ vars.COSIGN_KEYLESS }}"


def test_lists_results_and_the_report_are_kept_whatever_came_of_the_checks_and_released() -> None:
    def of(name: str, action: str) -> list[dict[str, Any]]:
        workflow = read(ROOT / f".gitea/workflows/{name}.yaml")
        return [step for step in steps(workflow) if step.get("uses", "").startswith(f"actions/{action}-artifact@")]

    [kept], [scanned], [taken] = of("images", "upload"), of("scan", "upload"), of("release", "download")
    assert kept["if"] == scanned["if"] == "always()"
    assert kept["with"]["path"].split() == ["build/images", "build/sbom", "build/scan"]
    assert taken["with"] == {"name": kept["with"]["name"], "path": "build"}
    assert scanned["with"]["path"] == "build/scan"


def test_what_a_fork_proposes_runs_on_no_machine_with_an_engine(workflow: dict[str, Any]) -> None:
    for job in own(workflow):
        if job["runs-on"] == "images" and "pull_request" in workflow["on"]:
            head = "github.event.pull_request.head.repo.full_name"
            assert job["if"] == f"github.event_name != 'pull_request' || {head} == github.repository"


def test_images_say_where_their_sources_are_and_a_tag_s_are_pushed_for_both_architectures() -> None:
    workflow = read(ROOT / ".gitea/workflows/images.yaml")
    assert workflow["env"]["SOURCE"] == "${{ github.server_url }}/${{ github.repository }}"
    assert [step["env"]["PUSH"] for step in steps(workflow) if step.get("run") == "make bake"] == ["true"]


def test_images_are_made_where_there_is_an_engine(workflow: dict[str, Any]) -> None:
    for job in own(workflow):
        needs = {"make images", "make registry-login"} & {step.get("run") for step in job["steps"]}
        assert job["runs-on"] == ("images" if needs else "ubuntu-latest")


def test_a_release_is_made_of_a_tag_that_fits_the_tree_and_after_its_images() -> None:
    workflow = read(ROOT / ".gitea/workflows/release.yaml")
    assert workflow["on"] == {"push": {"tags": ["v*"]}}
    assert workflow["jobs"]["images"] == {"uses": "./.gitea/workflows/images.yaml", "secrets": "inherit"}
    assert workflow["jobs"]["release"]["needs"] == "images"
    assert "workflow_call" in read(ROOT / ".gitea/workflows/images.yaml")["on"]
    assert commands("release", "release") == [
        "make release-check", "make wheels", "make publish-wheels", "make publish-release",
    ]  # fmt: skip


def test_a_workflow_and_the_one_it_calls_do_not_wait_for_each_other() -> None:
    groups = [read(ROOT / f".gitea/workflows/{name}.yaml")["concurrency"]["group"] for name in ("images", "release")]
    assert groups == ["${{ github.workflow }}-${{ github.ref }}", "release"]


@pytest.mark.parametrize("name", ["base-refresh", "scan"])
def test_the_base_is_refreshed_and_the_last_release_scanned_weekly(name: str) -> None:
    events = read(ROOT / f".gitea/workflows/{name}.yaml")["on"]
    minute, hour, day, month, weekday = events["schedule"][0]["cron"].split()
    assert minute.isdigit()
    assert hour.isdigit()
    assert (day, month) == ("*", "*")
    assert weekday.isdigit()


def test_a_base_is_proposed_after_it_was_tried_and_compared_with_the_one_before() -> None:
    called = commands("base-refresh")
    assert called[:3] == ["make registry-login", "make base-before", "make base-refresh"]
    assert called[-1] == "make propose-base-refresh"
    assert {"make images", "make image-test", "make image-report"} <= set(called[3:-1])


def test_tests_run_on_the_oldest_python_and_a_recent_one() -> None:
    job = read(ROOT / ".gitea/workflows/test.yaml")["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    assert commands("test") == ["make crds", "make build/tools/kustomize", "make test", "make demo"]
    assert job["env"] == {"CRD_DIR": "build/crds"}  # without these, tests of manifests are skipped
