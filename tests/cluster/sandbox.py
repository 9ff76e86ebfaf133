"""A Slurm of one's own on this machine: munged, slurmctld and two slurmd in the foreground, in a folder, no systemd."""
import os
import platform
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
NODES = ("one", "two")
START_SECONDS = 30

CONFIGURATION = """\
ClusterName=sandbox
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
CredType=cred/munge
MpiDefault=pmi2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SwitchType=switch/none
KillWait=20
MinJobAge=300
SlurmdTimeout=60
InactiveLimit=0
RebootProgram=/bin/true
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=2000 State=UNKNOWN
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=1:00:00 State=UP OverSubscribe=NO PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=1:00:00 State=UP OverSubscribe=NO PriorityTier=9 PreemptMode=OFF
"""


def missing():
    """Why no Slurm can be started here; "" if it can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "a Slurm of one's own is started as root"


@contextmanager
def slurm(folder):
    """A running Slurm with its files in `folder`, its commands' environment in os.environ (SLURM_CONF)."""
    folder = Path(folder)
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(host=platform.node(), folder=folder, ports=_free_ports(3)))
    os.environ["SLURM_CONF"] = str(configuration)
    running = []
    try:
        running.append(_munge(folder))
        running.append(_begin(["slurmctld", "-D", "-c", "-f", configuration], folder / "slurmctld.out"))
        running += [_begin(["slurmd", "-D", "-N", node, "-f", configuration], folder / f"slurmd-{node}.out")
                    for node in NODES]
        _wait_until(lambda: _idle() == len(NODES), folder)
        yield folder
    finally:
        subprocess.run(["scancel", "--user=root", "--signal=KILL"], capture_output=True)
        for process in reversed(running):
            process.terminate()
        for process in reversed(running):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        del os.environ["SLURM_CONF"]


def _munge(folder):
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    process = _begin(["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}",
                      f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log",
                      f"--seed-file={folder}/munge.seed"], folder / "munged.out")
    _wait_until(lambda: (folder / "munge.socket").exists(), folder)
    return process


def _begin(words, out):
    with open(out, "wb") as file:
        return subprocess.Popen([str(word) for word in words], stdout=file, stderr=subprocess.STDOUT,
                                stdin=subprocess.DEVNULL)


def _idle():
    said = subprocess.run(["sinfo", "--noheader", "--Node", "--partition=main", "--format=%T"], capture_output=True,
                          text=True).stdout
    return said.split().count("idle")


def _wait_until(condition, folder):
    until = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > until:
            told = "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}"
                             for path in sorted(folder.glob("*.out")) + sorted(folder.glob("*.log")))
            raise RuntimeError(f"the sandbox did not start\n{told}")
        time.sleep(0.1)


def _free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
