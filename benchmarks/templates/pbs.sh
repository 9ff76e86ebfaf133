#!/bin/bash
#PBS -N $name
#PBS -J $array
#PBS -l select=$ranks:ncpus=$threads:mpiprocs=1:ompthreads=1
#PBS -l place=free:exclhost
#PBS -l walltime=$time
#PBS -j oe
#PBS -o $output/
$directives
$setup
set -e
cd $folder
$vitrea bench $study $option
