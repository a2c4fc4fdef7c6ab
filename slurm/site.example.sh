# A site file, for slurm/submit --site FILE: shell, sourced by submit on the login node and by every
# job. All of it is optional.

module load gcc openmpi hdf5 cuda/13

SMALLTALK=$HOME/smalltalk/bin/smalltalk  # default: smalltalk on the PATH
SMALLTALK_MPI=pmix                       # srun --mpi=...; `srun --mpi=list` tells what there is
# What the binary is started in, here and in the jobs:
# SMALLTALK_CONTAINER=(apptainer exec --nv "$HOME/smalltalk.sif")

# Options of sbatch: of every stage, then of single stages (prepare, order, route, shard, train,
# evaluate, report, launch). They win over the #SBATCH lines of slurm/STAGE.sbatch.
gpus=(--partition=gpu --ntasks-per-node=8 --gpus-per-node=8)
SMALLTALK_SBATCH=(--account=project --cpus-per-task=8 --exclude=node13)
SMALLTALK_SBATCH_prepare=(--partition=cpu)
SMALLTALK_SBATCH_route=("${gpus[@]}" --nodes=4 --time=12:00:00)
SMALLTALK_SBATCH_shard=("${gpus[@]}" --nodes=4)
SMALLTALK_SBATCH_train=("${gpus[@]}" --nodes=1 --time=24:00:00)
SMALLTALK_SBATCH_evaluate=(--partition=gpu --gpus-per-node=1)
SMALLTALK_SBATCH_report=(--partition=cpu)
SMALLTALK_SBATCH_launch=("${gpus[@]}" --nodes=4)

# Options of the program, in the same manner: how it is told to stop, for example.
SMALLTALK_OPTIONS=(--walltime-margin 300)
# SMALLTALK_OPTIONS_shard=(--method margin)

SMALLTALK_PARALLEL=16  # at most so many elements of an array at once; default: no limit
SMALLTALK_PARTS=8      # the evaluation's array has so many elements; default: 4
SMALLTALK_TRIES=3      # so many starts in a row without progress, and a job gives up
