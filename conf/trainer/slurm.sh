#!/bin/bash
# A run that survives preemption and the job's time limit.
#
#   sbatch conf/trainer/slurm.sh RUN_DIR --config conf/hh_rlhf.yaml [options of fit]
#
# The first start begins the run; every later start resumes from RUN_DIR/checkpoints/last.ckpt.
#SBATCH --job-name=aplot
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=aplot-%j.log

run_dir=$1
shift
arguments=(--config conf/trainer/slurm.yaml --run_dir "$run_dir")
if [ -e "$run_dir/checkpoints/last.ckpt" ]; then
    arguments+=(--ckpt_path last)
fi

# srun forwards signals to the ranks; the shell only waits for them
trap : USR1 TERM
srun --kill-on-bad-exit=0 python -m aplot_lightning fit "$@" "${arguments[@]}"
code=$?
if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
