#!/bin/bash
# A study whose trials run on every node of a job, one GPU a trial; several such jobs may share one study too.
#
#   sbatch studies/slurm/tune.sh studies/cost_weights.yaml --storage postgresql://USER:PASSWORD@HOST/DATABASE
#   sbatch studies/slurm/tune.sh studies/cost_weights.yaml --storage journal:/shared/cost_weights.journal
#
# Each node runs the same `tune` command. They meet in the storage: a PostgreSQL server that all nodes reach, or a
# journal file on a disk that all of them share and that keeps locks (NFS 4, Lustre with flock); SQLite is for one
# machine. The study's directory must be on a shared disk in either case. Every trial is run once, and the first node that finds all
# finished writes the report. A job that was cancelled, preempted or out of time goes on when it is submitted again;
# trials of a node that was lost are tried again by the others after two minutes (PostgreSQL).
#
# Not measured: no cluster was at hand. Tested without one: several of these commands at once, killed at any moment.
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

# a node that ends early must not end the others; each gives its trials back on SIGTERM
trap : TERM
srun --kill-on-bad-exit=0 --label python -m aplot_lightning tune --config "$study" --workers "$workers" "$@"
code=$?
if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
