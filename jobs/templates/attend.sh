# BLAS threads and the like come from the allocation: ranks and the job's `threads` do the parallel work.
export OMP_NUM_THREADS=@threads OMP_PLACES=cores OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 BLIS_NUM_THREADS=1
if [ -e @resolved ]; then set -- resume @output; else set -- run @job; fi
@launcher @vitrea "$@@"@words &
run=$!
# Asked to leave before the time is over, or by whoever needs the nodes: pass it on, and wait for the checkpoint.
trap 'kill -USR1 "$run" 2>/dev/null' USR1
trap 'kill -TERM "$run" 2>/dev/null' TERM
@timer
wait "$run"; code=$?
while kill -0 "$run" 2>/dev/null; do wait "$run"; code=$?; done
@endtimer
exec @vitrea requeue @output --job @number --code "$code"
