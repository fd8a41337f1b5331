#!/usr/bin/env bash
# Training on one node.
#SBATCH --output=HERE/runs/e/r/slurm/%j.out
#SBATCH --job-name=ftlab-e-r
# By its comment `ftlab fit` finds the job again: it is never submitted twice.
#SBATCH --comment=ftlab:HERE/runs/e/r
#SBATCH --chdir=HERE
# One process a device, as Lightning counts them; --ntasks must not be given beside.
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
# Killed by a failing node or preempted, the job is queued again, and its log goes on in the same file.
#SBATCH --requeue
#SBATCH --open-mode=append
# So long before the end each process is told to save. Without `B:`, which would tell this script and not them.
#SBATCH --signal=USR1@120

export FTLAB_SUBMITTED=12ab

# A process that was told to stop, and has saved, ends with 75. srun would take the first for a failure and kill the
# others in the middle of their last words: so it leaves a note here, and ends with 0. So does one that was told before
# it could listen (128 + the signal's number).
export FTLAB_STOPPED=HERE/runs/e/r/slurm/$SLURM_JOB_ID.stopped
rm -f "$FTLAB_STOPPED"
one_process='
  trap "told=yes" USR1 USR2 TERM
  "$@"
  code=$?
  case "$code$told" in 75*|138yes|140yes|143yes) : >"$FTLAB_STOPPED"; exit 0 ;; esac
  exit $code'
saved_before=$(readlink HERE/runs/e/r/checkpoints/last.ckpt)

# srun does not take --cpus-per-task from sbatch. One process that fails ends the others, which would wait for it.
srun --cpus-per-task=1 --kill-on-bad-exit=1 \
  bash -c "$one_process" ftlab \
  python -m ftlab fit -c 'my experiment.yaml'
code=$?

# Told to stop, it goes on from its checkpoint when its turn comes again. A job that failed is not tried again, nor one
# that was cancelled: that one is no longer RUNNING.
if [ $code -eq 0 ] && [ -e "$FTLAB_STOPPED" ]; then
  rm -f "$FTLAB_STOPPED"
  # Nor is one that time and again is stopped before it has saved anything: it would be for ever.
  in_vain=HERE/runs/e/r/slurm/$SLURM_JOB_ID.in_vain
  if [ "$(readlink HERE/runs/e/r/checkpoints/last.ckpt)" = "$saved_before" ]; then echo once >>"$in_vain"; else : >"$in_vain"; fi
  if [ "$(wc -l <"$in_vain")" -ge 3 ]; then
    echo "ftlab: stopped three times before anything was saved: give the job more time, or less lead_seconds" >&2
    rm -f "$in_vain"
    exit 75
  fi
  if [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
    scontrol requeue "$SLURM_JOB_ID" && sleep 60  # until this script is ended: the job must not count as done
  fi
  exit 75
fi
exit $code
