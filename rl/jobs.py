"""The `swing-rl` commands as jobs of a Ray cluster, local or remote.

A job gets a copy of the repository (what `.gitignore` and `.rayignore` name is left out) and runs
`python -m rl.cli …` in it, on the head node. Ray is imported only when a command needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal

import requests
import typer

from data_pipeline.errors import RunError, one_line_errors

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

AuthMode = Literal["disabled", "token"]
LOCAL = "http://127.0.0.1:8265"
PROBE_S = 5.0
RECONNECT_S = 1.0
TIMED_OUT = 124
"""Exit code of a job that overran its deadline, as timeout(1) has it."""


@dataclass(frozen=True)
class JobOutcome:
    """How a job stands."""

    submission_id: str
    status: str
    """Ray's word: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    exit_code: int | None
    """The command's own; never 0 unless it succeeded; None while the job has not ended."""
    message: str


def submit(
    command: Sequence[str],
    *,
    address: str,
    working_dir: Path,
    auth_mode: AuthMode,
    submission_id: str | None,
    deadline_s: float,
    echo: Callable[[str], None],
) -> JobOutcome:
    """Runs a `swing-rl` command as a Ray job, follows its log and returns how it ended.

    Ctrl-C ends the following, not the job.

    Args:
        command: What would follow `swing-rl` on the command line.
        address: The Ray dashboard, for instance `http://127.0.0.1:8265`.
        working_dir: The repository; a copy of it is sent.
        auth_mode: Ray's authentication, here and in the job.
        submission_id: Name of the job, unique in the cluster; None lets Ray choose.
        deadline_s: When it passes, waiting for resources included, the job is stopped and has FAILED.
        echo: Is given the log as it comes, line ends included.

    Raises:
        RunError: The cluster cannot be reached or refuses the job.
    """
    entrypoint = entrypoint_of(command)
    if not (working_dir / "rl" / "cli.py").is_file():
        raise RunError(f"{working_dir}: holds no rl/cli.py; give the repository as --working-dir")
    client = _connect(address, auth_mode)
    with _plain_errors(address):
        job = client.submit_job(
            entrypoint=entrypoint,
            submission_id=submission_id,
            runtime_env={"working_dir": str(working_dir), "env_vars": {"RAY_AUTH_MODE": auth_mode}},
            entrypoint_num_cpus=0,
        )
        echo(f"job {job}: {entrypoint}\n")
        try:
            asyncio.run(asyncio.wait_for(_follow(client, job, echo), deadline_s))
        except TimeoutError:
            client.stop_job(job)
            return JobOutcome(job, "FAILED", TIMED_OUT, f"not done within {deadline_s:g} s; stopped")
        except KeyboardInterrupt:
            where = f"--address {address} --auth-mode {auth_mode} {job}"
            echo(f"\njob {job} goes on; follow it: swing-rl jobs logs --follow {where}\n")
            echo(f"stop it: swing-rl jobs stop {where}\n")
            raise
        return _outcome(client, job)


def entrypoint_of(command: Sequence[str]) -> str:
    """Returns the shell line that runs a `swing-rl` command inside a job.

    Raises:
        RunError: No command, or a relative `--out`, which the cluster would drop with the job's folder.
    """
    if not command:
        raise RunError("no command given; write it after --, for instance: -- train --out /data/runs/first")
    for argument, following in zip(command, [*command[1:], ""], strict=True):
        name, separator, joined = argument.partition("=")
        out = joined if separator else following
        if name == "--out" and "://" not in out and not PurePosixPath(out).is_absolute():
            raise RunError(f"--out {out}: a job's folder is dropped with its cluster; give an absolute path")
    return shlex.join(["python", "-m", "rl.cli", *command])


def _connect(address: str, auth_mode: AuthMode) -> JobSubmissionClient:
    if not address.startswith(("http://", "https://")):
        raise RunError(f"--address {address}: give the Ray dashboard, for instance {LOCAL}")
    try:
        # Ray's client knows no timeout. Here any answer will do.
        requests.get(address, timeout=PROBE_S)
    except requests.RequestException as error:
        raise _unreachable(address) from error
    os.environ["RAY_AUTH_MODE"] = auth_mode
    # Without it, a RAY_ADDRESS in the environment would win over the address given.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    with _plain_errors(address):
        from ray.job_submission import JobSubmissionClient  # noqa: PLC0415  (takes seconds)

        return JobSubmissionClient(address)


def _unreachable(address: str) -> RunError:
    return RunError(f"{address}: no Ray dashboard answers; start a cluster or mend --address")


@contextlib.contextmanager
def _plain_errors(address: str) -> Iterator[None]:
    """Turns what Ray's client raises into a RunError of one line."""
    from ray.exceptions import AuthenticationError  # noqa: PLC0415  (takes seconds)

    try:
        yield
    except (requests.RequestException, ConnectionError) as error:
        raise _unreachable(address) from error
    except AuthenticationError as error:
        raise RunError(f"{address}: Ray refuses access; use --auth-mode token and the cluster's token") from error
    except RuntimeError as error:
        text = str(error)
        if "already exists" in text:
            raise RunError("--submission-id: a job of that name already exists; choose another") from error
        raise RunError(f"{address}: {text.strip().splitlines()[-1]}") from error


async def _follow(client: JobSubmissionClient, job: str, echo: Callable[[str], None]) -> None:
    """Echoes the whole log of a job as it grows, until the job has ended; survives lost connections."""
    import aiohttp  # noqa: PLC0415  (comes with Ray)

    echoed = 0
    while True:
        received = 0
        with contextlib.suppress(aiohttp.ClientError, OSError, RuntimeError):
            async for text in client.tail_job_logs(job):
                fresh = text[max(echoed - received, 0) :]
                received += len(text)
                echoed += len(fresh)
                echo(fresh)
        if client.get_job_status(job).is_terminal():
            return
        await asyncio.sleep(RECONNECT_S)


def _outcome(client: JobSubmissionClient, job: str) -> JobOutcome:
    info = client.get_job_info(job)
    code: int | None = info.driver_exit_code
    if info.status.is_terminal() and info.status != "SUCCEEDED":
        code = code or 1
    if code is not None and code < 0:
        code = 128 - code
    return JobOutcome(job, str(info.status), code, info.message or "")


jobs_app = typer.Typer(help="The same commands as jobs of a Ray cluster.", no_args_is_help=True)

Job = Annotated[str, typer.Argument(help="The job's submission id.")]
Address = Annotated[str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The Ray dashboard.")]
Auth = Annotated[AuthMode, typer.Option(envvar="RAY_AUTH_MODE", help="Ray's authentication.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")]


@jobs_app.command("submit")
@one_line_errors
def submit_command(
    command: Annotated[list[str], typer.Argument(help="After --: what would follow swing-rl.")],
    *,
    address: Address = LOCAL,
    auth_mode: Auth = "disabled",
    submission_id: Annotated[str | None, typer.Option(help="Name of the job; Ray chooses one.")] = None,
    working_dir: Annotated[Path, typer.Option(help="The repository.")] = Path(),
    deadline_s: Annotated[float, typer.Option(min=1, help="Stop the job after so many seconds.")] = 86_400,
    as_json: AsJson = False,
) -> None:
    """Run a command as a job, follow its log, and exit with its exit code."""
    try:
        outcome = submit(
            command,
            address=address,
            working_dir=working_dir.resolve(),
            auth_mode=auth_mode,
            submission_id=submission_id,
            deadline_s=deadline_s,
            echo=partial(typer.echo, nl=False, err=as_json),
        )
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    _print(outcome, as_json)
    raise typer.Exit(outcome.exit_code or 0)


@jobs_app.command("status")
@one_line_errors
def status_command(job: Job, address: Address = LOCAL, auth_mode: Auth = "disabled", as_json: AsJson = False) -> None:
    """Print how a job stands."""
    client = _connect(address, auth_mode)
    with _plain_errors(address):
        _print(_outcome(client, job), as_json)


@jobs_app.command("logs")
@one_line_errors
def logs_command(
    job: Job,
    address: Address = LOCAL,
    auth_mode: Auth = "disabled",
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job has ended.")] = False,
) -> None:
    """Print the log of a job."""
    client = _connect(address, auth_mode)
    echo = partial(typer.echo, nl=False)
    try:
        with _plain_errors(address):
            if follow:
                asyncio.run(_follow(client, job, echo))
            else:
                echo(client.get_job_logs(job))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@jobs_app.command("stop")
@one_line_errors
def stop_command(job: Job, address: Address = LOCAL, auth_mode: Auth = "disabled") -> None:
    """Stop a job."""
    client = _connect(address, auth_mode)
    with _plain_errors(address):
        stopping = client.stop_job(job)
    typer.echo(f"job {job}: {'is being stopped' if stopping else 'had ended already'}")


def _print(outcome: JobOutcome, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(outcome)))
        return
    # Ray's message of a failed job repeats the end of its log.
    reason = outcome.message.partition(", last available logs")[0]
    typer.echo(f"job {outcome.submission_id}: {outcome.status}. {reason}")
