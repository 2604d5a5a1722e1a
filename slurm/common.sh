# shellcheck shell=bash
# What the batch scripts of this folder share. They source it; README.md in this folder lists the variables it reads.

fail() {
    echo "error: $*" >&2
    exit 2
}

# Fill the array `python`, the words that start Python once per task of the job.
# Arguments: the name of the batch script and the arguments it was given, of which the first must be a configuration.
prepare() {
    local script=$1 config=${2-}
    [ -n "${SLURM_JOB_ID-}" ] || fail "this is a job for Slurm; submit it: sbatch slurm/$script CONFIG"
    case $config in
        '' | -*) fail "name a configuration before any option: sbatch slurm/$script CONFIG [OPTION]..." ;;
    esac
    choose_interpreter
    choose_launcher
    # shellcheck disable=SC2034 # read by the batch scripts
    python=("${launcher[@]}" "$interpreter")

    # As many threads as a task has cores: each process would otherwise start one for every core that it sees.
    export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
    export TF_NUM_INTRAOP_THREADS=$OMP_NUM_THREADS
    export PYTHONUNBUFFERED=1 # a log shows what has happened so far
}

choose_interpreter() {
    local environments=${SLURM_SUBMIT_DIR:-$PWD}/.venv stamp
    case ${WSC_PYTHON-} in
        */*)
            interpreter=$WSC_PYTHON
            [ -x "$interpreter" ] || fail "WSC_PYTHON names $interpreter, which cannot be run"
            return
            ;;
        '') stamp=$(printf '%s\n' "$environments"/*/installed | sort -V | tail -n 1) ;;
        *) stamp=$environments/$WSC_PYTHON/installed ;;
    esac
    interpreter=${stamp%/installed}/bin/python
    [ -f "$stamp" ] && [ -x "$interpreter" ] ||
        fail "there is no Python environment ${stamp%/installed}; make it with 'make setup', or let WSC_PYTHON name" \
            "an interpreter by its path"
}

choose_launcher() {
    case ${WSC_LAUNCHER:-srun} in
        srun)
            # srun takes the number of cores per task from the job only in some versions. A task that ends says nothing
            # about the others, which may still be saving; but they do not wait for ever for one that died.
            launcher=(srun "--mpi=${WSC_MPI:-pmix}" "--cpus-per-task=${SLURM_CPUS_PER_TASK:-1}")
            launcher+=(--kill-on-bad-exit=0 --wait=300)
            ;;
        mpirun)
            # Bound to one core each, as Open MPI does by itself, tasks could not use the cores they were given.
            launcher=(mpirun --bind-to none)
            ;;
        *) fail "WSC_LAUNCHER is $WSC_LAUNCHER; it can be srun or mpirun" ;;
    esac
    command -v "${launcher[0]}" >/dev/null ||
        fail "there is no ${launcher[0]} on this machine; load its module, or let WSC_LAUNCHER name the other one"
}
