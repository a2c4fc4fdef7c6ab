# Sourced by the batch files of this folder, which are one call of run_stage each, and by submit.
# submit exports SMALLTALK_SLURM (this folder), SMALLTALK_SITE (the site file), SMALLTALK_OFFSET
# (of an array's indices: see MaxArraySize in submit) and SMALLTALK_PARTS.
SMALLTALK=${SMALLTALK:-smalltalk}
SMALLTALK_MPI=${SMALLTALK_MPI:-pmix}
SMALLTALK_CONTAINER=()
SMALLTALK_TRIES=${SMALLTALK_TRIES:-3}
if [ -n "${SMALLTALK_SITE:-}" ]; then source "$SMALLTALK_SITE"; fi

ELEMENT=$((${SLURM_ARRAY_TASK_ID:-0} + ${SMALLTALK_OFFSET:-0}))

program() { "${SMALLTALK_CONTAINER[@]}" "$SMALLTALK" "$@"; }

# run_stage STAGE JOB EXPERIMENT RUN [ARGUMENT...]: the job under srun. Exit code 75 means "saved,
# start me again": the Slurm job is requeued. Does not return.
run_stage() {
  trap : TERM USR1 USR2  # a batch shell that dies of a signal loses the requeue
  local stage=$1 job=$2 experiment=$3 run=$4 code
  shift 4
  local me=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  me=${me:-$SLURM_JOB_ID}
  # How many starts in a row have brought nothing, and what there was at the last one.
  local record=$run/slurm/$stage-$ELEMENT stalls=0 saved=-
  if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -s "$record" ]; then
    read -r stalls saved _ <"$record"
  fi
  look_for_progress
  echo "$stalls $saved" >"$record"
  # srun takes it from sbatch no more (since Slurm 22.05): each rank would get one core.
  if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
    export SRUN_CPUS_PER_TASK=${SRUN_CPUS_PER_TASK:-$SLURM_CPUS_PER_TASK}
  fi
  # A rank that leaves with 75 must not take those with it that are on their way out; PMIx ends all
  # if one dies.
  srun --mpi="$SMALLTALK_MPI" --kill-on-bad-exit=0 "${SMALLTALK_CONTAINER[@]}" \
    "$SMALLTALK" "$job" "$experiment" --out "$run" "$@" && code=0 || code=$?
  if [ $code = 75 ]; then
    look_for_progress
    case $(squeue --noheader --array --jobs="$me" --format='%T %r') in
      "COMPLETING TimeLimit") ;&
      RUNNING* | "")
        echo "$stage: requeueing job $me" >&2
        # A script that ends now would end the job: Slurm ends both when it has taken the job back.
        scontrol requeue "$me" && sleep 600 ;;
      *) ;;  # cancelled, or Slurm is requeueing it already
    esac
  else
    echo "$stalls $saved exit $code" >"$record"
  fi
  exit $code
}

# Ends the job if the stage has not advanced: the same files of the same sizes too often in a row.
look_for_progress() {
  local now=nothing
  if [ -d "$run/runs" ]; then  # a sweep: all that its runs hold, but for notes on each start
    now=$(find "$run/runs" \( -name ledger -o -name queue \) -prune -o -type f -printf '%p %s\n' |
      sort | cksum | tr ' ' -)
  elif [ -e "$run/experiment.toml" ]; then
    now=$(program status "$run" --tsv --queue /dev/null --stage "$stage" --index "$ELEMENT" | cut -f6)
  fi
  if [ "$now" != "$saved" ] || [ -z "$now" ]; then  # who cannot see accuses nobody
    stalls=0 saved=$now
    return
  fi
  stalls=$((stalls + 1))
  [ "$stalls" -ge "$SMALLTALK_TRIES" ] || return 0
  echo "$stage: giving up: job $me was started $stalls times in a row without anything new in" \
    "$run to go on from. Is the time limit too short for a save? Submit again to try again." >&2
  echo "$stalls $saved exit 1" >"$record"
  exit 1
}
