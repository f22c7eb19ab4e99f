#!/bin/bash
# A study whose trials run on every node of a job, one GPU per trial; several jobs can share one study.
#
#   sbatch studies/slurm/tune.sh studies/cost_weights.yaml --storage postgresql://USER:PASSWORD@HOST/DATABASE
#   sbatch studies/slurm/tune.sh studies/cost_weights.yaml --storage journal:/shared/cost_weights.journal
#
# Each node runs the same `tune` command. They share the storage: a PostgreSQL server that all nodes can reach, or
# a journal file on a shared disk with locks (NFS 4, Lustre with flock); SQLite is for one machine. The study's directory
# must be on a shared disk in either case. Every trial runs once, and the first node that finds all trials finished writes
# the report. A job that was canceled, preempted or out of time resumes when it is submitted again; the other nodes retry
# the trials of a lost node after two minutes (PostgreSQL).
#
# Not measured, because no cluster was available. Tested without one: several of these commands at once, killed at any moment.
#SBATCH --job-name=aplot-tune
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=aplot-tune-%j.log

study=$1
shift
workers=${SLURM_GPUS_ON_NODE:-1}

# A node that ends early must not end the others; on SIGTERM each node releases its trials.
trap : TERM
srun --kill-on-bad-exit=0 --label python -m aplot_lightning tune --config "$study" --workers "$workers" "$@"
code=$?
if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
