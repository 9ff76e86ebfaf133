#!/bin/bash
#SBATCH --job-name=$name
#SBATCH --array=$array
#SBATCH --ntasks=$ranks
#SBATCH --cpus-per-task=$threads
#SBATCH --time=$time
#SBATCH --exclusive
#SBATCH --output=$output/$log
$directives
$setup
set -e
cd $folder
$vitrea bench $study $option
