"""The batch scripts of slurm/, with stand-ins for Slurm's and MPI's commands."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCRIPTS = ("train.sbatch", "test.sbatch", "heatmap.sbatch")
STOPPED = 128 + signal.SIGUSR1
SECONDS = 30  # a hang is a failure

# It notes its words and what it sees of the environment. Told to stop, it saves, for a while, and ends as it was asked.
LAUNCHER = """#!/bin/bash
printf '%s\\0' "$(basename "$0")" "$@" > "$NOTES/words"
env > "$NOTES/environment"
stop() {{ echo "$1" >> "$NOTES/signals"; sleep {saving}; echo saved >> "$NOTES/events"; exit {stopped}; }}
trap 'stop USR1' USR1
trap 'stop TERM' TERM
echo ready > "$NOTES/ready"
for _ in $(seq {tenths}); do sleep 0.1; done
echo ended >> "$NOTES/events"
exit {ended}
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$NOTES/events"
exit {code}
"""


class Job:
    """A checkout with the scripts and stand-ins, and what a job of Slurm finds there.

    Attributes:
        checkout: its folder, where the job was submitted; its name has a space.
        notes: the folder that the stand-ins write to.
        environment: that of the job.
    """

    def __init__(self, folder):
        self.checkout, self.notes, commands = folder / "a checkout", folder / "notes", folder / "commands"
        shutil.copytree(os.path.join(ROOT, "slurm"), str(self.checkout / "slurm"))
        self.notes.mkdir()
        commands.mkdir()
        self._commands = commands
        for version in ("3.7", "3.10", "3.11"):
            self.add_environment(version)
        self.environment = {
            "PATH": "{}:{}".format(commands, os.environ["PATH"]),
            "NOTES": str(self.notes),
            "SLURM_JOB_ID": "17",
            "SLURM_SUBMIT_DIR": str(self.checkout),
            "SLURM_CPUS_PER_TASK": "4",
        }
        self.launcher()
        self.command("scontrol", SCONTROL.format(code=0))

    def add_environment(self, version):
        """An environment as ``make setup`` leaves it."""
        folder = self.checkout / ".venv" / version
        (folder / "bin").mkdir(parents=True)
        self.write_executable(folder / "bin" / "python", "")
        (folder / "installed").write_text("", encoding="utf-8")

    def launcher(self, ended=0, stopped=STOPPED, saving=0.3, tenths=0):
        """Set how the launchers behave: exit codes, seconds to save, and tenths of a second before they end."""
        text = LAUNCHER.format(ended=ended, stopped=stopped, saving=saving, tenths=tenths)
        for name in ("srun", "mpirun"):
            self.command(name, text)

    def command(self, name, text):
        """Put a command before those of the machine."""
        self.write_executable(self._commands / name, text)

    @staticmethod
    def write_executable(path, text):
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def start(self, script, *arguments):
        """The process of a job, which runs a copy of the script in another folder, as Slurm does."""
        spool = self.notes / "slurm_script"
        shutil.copy(os.path.join(ROOT, "slurm", script), str(spool))
        return subprocess.Popen(
            ("bash", str(spool)) + arguments,
            cwd=str(self.checkout),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
        )

    def run(self, script, *arguments):
        """Exit code, standard output and error of a job that nobody signals."""
        process = self.start(script, *arguments)
        output, errors = process.communicate(timeout=SECONDS)
        return process.returncode, output, errors

    def train(self, *signals):
        """The same of a training that is sent signals, a while apart, once its launcher is ready."""
        process = self.start("train.sbatch", "c.yaml")
        end = time.monotonic() + SECONDS
        while not (self.notes / "ready").exists():
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.02)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.15)
        output, errors = process.communicate(timeout=SECONDS)
        return process.returncode, output, errors

    def noted(self, name):
        """Lines that the stand-ins wrote to a file, none where there is no such file."""
        path = self.notes / name
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def words(self):
        """The launcher's name and arguments; fails where none was started."""
        return (self.notes / "words").read_text(encoding="utf-8").split("\0")[:-1]


@pytest.fixture
def job(tmp_path):
    """A :class:`Job`."""
    return Job(tmp_path)


def sentence(outcome):
    """The one sentence of a job that refused to start."""
    code, output, errors = outcome
    assert code == 2 and not output and errors.count("\n") == 1 and errors.startswith("error: "), outcome
    return errors


def directives(script):
    """Options of sbatch in a script, by name."""
    with open(os.path.join(ROOT, "slurm", script), encoding="utf-8") as stream:
        return dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", stream.read(), re.MULTILINE))


@pytest.mark.parametrize("name", SCRIPTS + ("common.sh",))
def test_bash_and_shellcheck_accept_every_script(name):
    subprocess.run(("bash", "-n", os.path.join("slurm", name)), cwd=ROOT, check=True)
    shellcheck = shutil.which("shellcheck", path=os.path.dirname(sys.executable)) or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("there is no shellcheck")
    subprocess.run((shellcheck, "-x", os.path.join("slurm", name)), cwd=ROOT, check=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_job_has_one_task_for_each_gpu_of_its_nodes(script):
    asked = directives(script)
    assert asked["nodes"] == "1" and asked["ntasks-per-node"] == asked["gpus-per-node"] == "8"
    assert "account" not in asked and "partition" not in asked  # they are the user's


def test_every_script_is_known_here():
    assert sorted(os.listdir(os.path.join(ROOT, "slurm"))) == sorted(SCRIPTS + ("common.sh", "README.md"))


def test_a_training_asks_to_be_warned_and_requeued():
    asked = directives("train.sbatch")
    assert asked["signal"] == "B:USR1@600" and "requeue" in asked and asked["open-mode"] == "append"


@pytest.mark.parametrize("script, inserted", [(SCRIPTS[0], ["--resume"]), (SCRIPTS[1], []), (SCRIPTS[2], [])])
def test_arguments_arrive_whole(job, script, inserted):
    arguments = ["my config.yaml", "--set", "data.slides=/a folder/of 'slides'", "--output", "$HOME *", ""]
    code, _, errors = job.run(script, *arguments)
    assert code == 0, errors
    words = job.words()
    start = words.index("-m")
    assert words[start + 1] == "whole_slide_cnn." + script.split(".")[0]
    assert words[start + 2 :] == ["--config", arguments[0]] + inserted + arguments[1:]


def test_srun_is_told_what_it_does_not_take_from_the_job(job):
    job.run("train.sbatch", "c.yaml")
    words = job.words()
    options = {"--mpi=pmix", "--cpus-per-task=4", "--kill-on-bad-exit=0", "--wait=300"}
    assert words[0] == "srun" and options == set(words[1 : words.index("-m") - 1])
    job.environment["WSC_MPI"] = "pmi2"
    job.run("train.sbatch", "c.yaml")
    assert "--mpi=pmi2" in job.words() and "--mpi=pmix" not in job.words()


def test_mpirun_can_be_chosen(job):
    job.environment["WSC_LAUNCHER"] = "mpirun"
    job.run("test.sbatch", "c.yaml")
    assert job.words()[:3] == ["mpirun", "--bind-to", "none"]


@pytest.mark.parametrize("cores, threads", [("4", "4"), (None, "1")])
def test_a_task_has_a_thread_for_each_of_its_cores(job, cores, threads):
    job.environment.pop("SLURM_CPUS_PER_TASK")
    if cores is not None:
        job.environment["SLURM_CPUS_PER_TASK"] = cores
    job.run("heatmap.sbatch", "c.yaml")
    seen = job.noted("environment")
    assert "OMP_NUM_THREADS=" + threads in seen and "TF_NUM_INTRAOP_THREADS=" + threads in seen


@pytest.mark.parametrize("named, version", [(None, "3.11"), ("3.7", "3.7"), ("3.10", "3.10")])
def test_the_newest_or_the_named_environment_is_used(job, named, version):
    if named is not None:
        job.environment["WSC_PYTHON"] = named
    job.run("train.sbatch", "c.yaml")
    words = job.words()
    assert words[words.index("-m") - 1] == str(job.checkout / ".venv" / version / "bin" / "python")


def test_a_half_made_environment_is_passed_over(job):
    (job.checkout / ".venv" / "3.11" / "installed").unlink()
    job.run("train.sbatch", "c.yaml")
    assert str(job.checkout / ".venv" / "3.10" / "bin" / "python") in job.words()


def test_an_interpreter_can_be_named_by_its_path(job):
    own = job.notes / "my python"
    job.environment["WSC_PYTHON"] = str(own)
    assert str(own) in sentence(job.run("train.sbatch", "c.yaml"))
    job.write_executable(own, "")
    assert job.run("train.sbatch", "c.yaml")[0] == 0
    assert str(own) in job.words()


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("arguments", [(), ("",), ("--set", "train.epochs=3")])
def test_a_configuration_is_needed(job, script, arguments):
    said = sentence(job.run(script, *arguments))
    assert "name a configuration" in said and "slurm/" + script in said


@pytest.mark.parametrize("script", SCRIPTS)
def test_outside_slurm_it_says_how_to_submit(job, script):
    del job.environment["SLURM_JOB_ID"], job.environment["SLURM_SUBMIT_DIR"]
    assert "sbatch slurm/" + script in sentence(job.run(script, "c.yaml"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_must_be_submitted_in_the_checkout(job, script):
    job.environment["SLURM_SUBMIT_DIR"] = str(job.notes)
    assert "submit in the checkout" in sentence(job.run(script, "c.yaml"))


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("WSC_LAUNCHER", "horovodrun", "srun or mpirun"),
        ("WSC_PYTHON", "3.12", ".venv/3.12; make it with 'make setup'"),
        ("WSC_REQUEUES", "often", "it is a number"),
    ],
)
def test_variables_are_checked(job, name, value, said):
    job.environment[name] = value
    assert said in sentence(job.run("train.sbatch", "c.yaml"))
    assert not job.noted("ready")


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_a_launcher_is_needed(job, tmp_path, launcher):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "sort", "tail"):
        (tools / name).symlink_to(shutil.which(name))
    job.environment.update(WSC_LAUNCHER=launcher, PATH=str(tools))
    assert "there is no {} on this machine".format(launcher) in sentence(job.run("train.sbatch", "c.yaml"))


def test_an_environment_is_needed(job):
    shutil.rmtree(str(job.checkout / ".venv"))
    assert "make setup" in sentence(job.run("train.sbatch", "c.yaml"))


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_a_training_is_stopped_waited_for_and_requeued(job, launcher):
    job.environment["WSC_LAUNCHER"] = launcher
    job.launcher(tenths=300)
    code, output, errors = job.train(signal.SIGUSR1)
    assert code == STOPPED, errors
    assert job.words()[0] == launcher and job.noted("signals") == ["USR1"]
    assert job.noted("events") == ["saved", "scontrol requeue 17"]
    assert "requeueing job 17" in output


def test_a_second_signal_does_not_reach_a_training_that_saves(job):
    job.launcher(tenths=300, saving=1)
    code, _, _ = job.train(signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM)
    assert code == STOPPED and job.noted("signals") == ["USR1"]
    assert job.noted("events") == ["saved", "scontrol requeue 17"]


@pytest.mark.parametrize("stopped", [0, 1, 2, 137])
def test_a_training_that_ends_or_fails_after_the_signal_is_not_requeued(job, stopped):
    job.launcher(tenths=300, stopped=stopped)
    code, output, _ = job.train(signal.SIGUSR1)
    assert code == stopped and job.noted("events") == ["saved"] and not output


@pytest.mark.parametrize("number, passed_on", [(signal.SIGTERM, []), (signal.SIGINT, ["USR1"])])
def test_other_signals_are_waited_for_without_requeueing(job, number, passed_on):
    """Slurm sends SIGTERM to the tasks itself; SIGINT is the user's, to stop for good."""
    job.launcher(tenths=10)
    code, _, _ = job.train(number)
    assert job.noted("signals") == passed_on
    assert (code, job.noted("events")) == ((STOPPED, ["saved"]) if passed_on else (0, ["ended"]))


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("code", [0, 1, 2, 130, 143])
def test_exit_codes_pass_through(job, script, code):
    job.launcher(ended=code)
    assert job.run(script, "c.yaml")[0] == code
    assert job.noted("events") == ["ended"]


def test_only_a_training_is_requeued_and_whoever_stopped_it(job):
    job.launcher(ended=STOPPED)
    for script in SCRIPTS:
        assert job.run(script, "c.yaml")[0] == STOPPED
    assert job.noted("events") == ["ended", "scontrol requeue 17", "ended", "ended"]


@pytest.mark.parametrize("restarts, requeued", [("1", True), ("2", False), ("3", False)])
def test_requeueing_has_a_limit(job, restarts, requeued):
    job.environment.update(WSC_REQUEUES="2", SLURM_RESTART_COUNT=restarts)
    job.launcher(ended=STOPPED)
    code, _, errors = job.run("train.sbatch", "c.yaml")
    assert code == STOPPED
    assert ("scontrol requeue 17" in job.noted("events")) is requeued
    assert ("not requeued" in errors) is not requeued


def test_a_job_that_cannot_be_requeued_says_so(job):
    job.launcher(ended=STOPPED)
    job.command("scontrol", SCONTROL.format(code=1))
    code, _, errors = job.run("train.sbatch", "c.yaml")
    assert code == STOPPED and "error: job 17 could not be requeued" in errors
