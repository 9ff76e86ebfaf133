# Ranks and the job's `threads` do the parallel work.
export OMP_NUM_THREADS=@threads OMP_PLACES=cores OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 BLIS_NUM_THREADS=1
export VITREA_PATIENCE=@patience
if [ -e @resolved ]; then set -- resume @output; else set -- run @job; fi
# Asked to leave before the time is over, or because the nodes are needed: the run is told until it has left. Before it
# listens, it is deaf to these signals, as it would end by them.
trap '' USR1 TERM
@launcher @vitrea "$@@"@words &
run=$! ask=
trap 'ask=USR1' USR1
trap 'ask=TERM' TERM
@timer
while kill -0 "$run" 2>/dev/null; do
    if [ -n "$ask" ]; then kill -s "$ask" "$run" 2>/dev/null; fi
    sleep 2 &
    wait -n "$run" $!
done
wait "$run"; code=$?
@endtimer
exec @vitrea requeue @output --job @number --code "$code"
