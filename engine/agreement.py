"""A mistake that one rank finds is raised on all of them, before the next collective."""
from vitrea.engine.errors import JobError


def on_rank_0(read, comm):
    """What `read` gives on rank 0, None elsewhere; its JobError is raised on all ranks. Collective."""
    found, mistake = None, None
    if comm.rank == 0:
        try:
            found = read()
        except JobError as error:
            mistake = str(error)
    mistake = comm.bcast(mistake, root=0)
    if mistake:
        raise JobError(mistake)
    return found


def on_each(make, comm):
    """What `make` gives; a JobError of one rank is raised on all. Collective."""
    made, mistake = None, None
    try:
        made = make()
    except JobError as error:
        mistake = str(error)
    agree(mistake, comm)
    return made


def agree(mistake, comm):
    """Raise on all ranks what one rank found, before the next collective."""
    found = [text for text in comm.allgather(mistake) if text]
    if found:
        raise JobError(found[0])
