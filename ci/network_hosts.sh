#!/usr/bin/env bash
# Runs an MPI program on test hosts that this machine makes out of itself: network namespaces on a
# switch, each with its own address, host name and shared memory, so that MPI takes them for
# different nodes and speaks TCP between them. Needs root; touches nothing of the real network.
#
#   ci/network_hosts.sh [--hosts H] [--ranks R] -- PROGRAM ARGUMENT...
#
#   --hosts H   test hosts, 1 to 64 (default 2)
#   --ranks R   ranks, spread over the hosts in contiguous blocks (default 4)
#
# The last line of the output is JSON: sent_bytes are those that left each host through its network
# interface, with all headers and the few kilobytes of the launcher's own talk. The exit code is
# the program's; 77 after "skipped: REASON" if this machine can make no test hosts.
set -euo pipefail

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; }
refuse() { echo "network_hosts: $1" >&2; exit 2; }
skip() { echo "skipped: $1"; exit 77; }

subnet=10.213.0.0/16
address_of() { echo "10.213.0.$(($1 + 1))"; }

# Inside, in a machine of its own: network, mounts, host name and processes. Nothing here needs to
# be undone: all of it ends with the first process, however that ends.
make_hosts() {
  mount -t tmpfs tmpfs /run  # for the names of namespaces, and what MPI leaves behind
  mkdir /run/mpi
  ip link add name switch type bridge
  ip link set switch up
  local host
  for ((host = 0; host < hosts; ++host)); do
    ip netns add "host$host"
    ip link add name "port$host" type veth peer name net0 netns "host$host"
    ip link set "port$host" master switch up
    ip -n "host$host" address add "$(address_of "$host")/16" dev net0
    ip netns exec "host$host" sh -c \
      'f=/proc/sys/net/ipv6/conf/all/disable_ipv6; [ ! -e $f ] || echo 1 >$f'  # IPv6 is only noise
    ip -n "host$host" link set net0 up
    ip -n "host$host" link set lo up
  done
  cat >/run/on_host <<'AGENT'
#!/bin/sh
# on_host HOST COMMAND...: what rsh is to a real network.
host=$1
shift
exec ip netns exec "$host" unshare --uts --ipc sh -c '
  hostname "$0" && mount -t tmpfs tmpfs /dev/shm && eval "exec $1"' "$host" "$*"
AGENT
  chmod +x /run/on_host
}

sent_bytes() {
  local host separator=
  for ((host = 0; host < hosts; ++host)); do
    printf '%s%s' "$separator" \
      "$(ip netns exec "host$host" cat /sys/class/net/net0/statistics/tx_bytes)"
    separator=' '
  done
}

run_inside() {
  hosts=$1 ranks=$2
  shift 2
  make_hosts
  local list= host
  for ((host = 0; host < hosts; ++host)); do
    list+=${list:+,}host$host:$((ranks * (host + 1) / hosts - ranks * host / hosts))
  done
  local before after sent=() status=0
  read -ra before <<<"$(sent_bytes)"
  # The program is the last words of mpirun, which host 0 runs as it would a login's command line.
  /run/on_host host0 "$(printf '%q ' mpirun --allow-run-as-root --oversubscribe --bind-to none \
    -n "$ranks" --host "$list" --map-by slot \
    --mca plm rsh --mca plm_rsh_agent /run/on_host --mca plm_rsh_no_tree_spawn 1 \
    --mca orte_tmpdir_base /run/mpi --mca oob_tcp_if_include "$subnet" \
    --mca pml ob1 --mca btl self,vader,tcp --mca btl_tcp_if_include "$subnet" \
    --mca btl_vader_single_copy_mechanism none --mca mpi_yield_when_idle 1 "$@")" || status=$?
  read -ra after <<<"$(sent_bytes)"
  for ((host = 0; host < hosts; ++host)); do sent+=($((after[host] - before[host]))); done
  echo "{\"hosts\": $hosts, \"ranks\": $ranks, \"exit_code\": $status," \
    "\"sent_bytes\": [$(IFS=,; echo "${sent[*]}" | sed 's/,/, /g')]}"
  exit "$status"
}

if [ "${1:-}" = --inside ]; then
  shift
  run_inside "$@"
fi

hosts=2 ranks=4
while [ $# -gt 0 ]; do
  case $1 in
    --hosts) hosts=${2:-} && shift 2 || refuse "--hosts needs a number" ;;
    --ranks) ranks=${2:-} && shift 2 || refuse "--ranks needs a number" ;;
    --help) usage; exit 0 ;;
    --) shift; break ;;
    *) refuse "unknown argument $1 (the program comes after --; see --help)" ;;
  esac
done
[[ $hosts =~ ^[1-9][0-9]?$ && $hosts -le 64 ]] || refuse "--hosts is a number from 1 to 64"
[[ $ranks =~ ^[1-9][0-9]{0,3}$ && $ranks -ge $hosts ]] || refuse "--ranks is at least --hosts"
[ $# -gt 0 ] || refuse "no program to run (see --help)"

[ "$(id -u)" = 0 ] || skip "test hosts need root"
for tool in ip unshare setpriv mpirun; do
  command -v "$tool" >/dev/null || skip "$tool is not installed"
done
own_machine=(unshare --net --mount --uts --ipc --pid --fork --kill-child --mount-proc)
trial='mount -t tmpfs tmpfs /run && ip link add name a type bridge && ip netns add b &&
  ip link add name c type veth peer name d netns b && ip netns exec b unshare --uts hostname e'
reason=$("${own_machine[@]}" sh -c "$trial" 2>&1) || skip "no namespaces here: ${reason//$'\n'/ }"

# Killed by the kernel when this script dies without saying good-bye.
setpriv --pdeathsig KILL "${own_machine[@]}" bash "$0" --inside "$hosts" "$ranks" "$@" &
inside=$!
end_all() {
  kill -KILL "$inside" 2>/dev/null || true
  wait "$inside" 2>/dev/null || true
}
trap 'end_all; exit 130' INT
trap 'end_all; exit 143' TERM
trap 'end_all; exit 129' HUP
status=0
wait "$inside" || status=$?
exit "$status"
