#!/usr/bin/env bash
# A study on a real SLURM: one node on loopback, two slots, no accounting. A job is cancelled on the
# way and tried again; the records must equal, byte for byte, those of a run without a cluster.
#
#     make slurm          as root, on a throw-away Debian or Ubuntu machine
set -euo pipefail
cd "$(dirname "$0")/.."
ethalign=${VENV:-.venv}/bin/ethalign
folder=$(mktemp -d)
[ ! -e /etc/slurm/slurm.conf ] || { echo "this machine has a SLURM already; leaving it alone"; exit 1; }
command -v slurmctld > /dev/null || { apt-get update -qq && apt-get install -y -qq slurm-wlm munge; }

node=$(hostname -s)
mkdir -p /etc/slurm "$folder"/{state,spool,munge}
cat > "$folder/slurm.conf" <<CONF
ClusterName=loopback
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
MinJobAge=86400
ReturnToService=2
NodeName=$node NodeAddr=127.0.0.1 CPUs=2 RealMemory=$(free -m | awk '/^Mem/ {print $2}')
PartitionName=all Nodes=$node Default=YES MaxTime=INFINITE State=UP
CONF
# Jobs do not inherit the environment: they look for it in its usual place.
ln -s "$folder/slurm.conf" /etc/slurm/slurm.conf

pids=()
finish() {
  kill "${pids[@]}" 2> /dev/null || true
  wait || true
  rm -rf /etc/slurm/slurm.conf "$folder"
}
trap finish EXIT
head -c 1024 /dev/urandom > "$folder/munge/key"
chmod 700 "$folder/munge"; chmod 400 "$folder/munge/key"
munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
  --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" \
  --seed-file="$folder/munge/seed" 2> "$folder/munged.log" & pids+=($!)
slurmctld -D 2> "$folder/slurmctld.log" & pids+=($!)
slurmd -D 2> "$folder/slurmd.log" & pids+=($!)
for _ in $(seq 60); do
  [ "$(sinfo --noheader --format=%t 2> /dev/null)" = idle ] && break
  sleep 1
done
sinfo

"$ethalign" run reasons --scale smoke --runs "$folder/cluster" --profile slurm & run=$!
cancelled=
while [ -z "$cancelled" ] && kill -0 "$run" 2> /dev/null; do
  cancelled=$(squeue --noheader --states=RUNNING --format='%i %k' | awk '/finetune_L_0/ {print $1; exit}')
  sleep 0.5
done
sleep 2
scancel "$cancelled"
wait "$run"
squeue --states=all --format='%i %T %k'
squeue --noheader --states=CANCELLED --format=%k | grep -q finetune_L_0

"$ethalign" run reasons --scale smoke --runs "$folder/local"
cd "$folder/local"
find . \( -name metrics.json -o -name predictions.jsonl -o -name adapter_model.safetensors \) \
  -print0 | xargs -0 -I{} cmp {} "$folder/cluster/{}"
echo "the records of both runs are equal"
