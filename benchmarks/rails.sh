#!/bin/bash
# Shaped rails between two network namespaces, for benchmarks and for trying faults by hand. Needs root.
#
#   rails.sh with [-n RAILS] [-r RATE] COMMAND...   make them, run COMMAND, take them away
#   rails.sh up [-n RAILS] [-r RATE]                make them and print their NAME, until
#   rails.sh NAME down                              takes them away
#   rails.sh NAME rate RAIL RATE                    shape both ends of a rail anew (100mbit)
#   rails.sh NAME cut RAIL | mend RAIL              link down and up again
#   rails.sh NAME drop RAIL | undrop RAIL           silent loss: the link stays up, nothing arrives
#   rails.sh NAME reset RAIL                        its TCP connections get a reset
#   rails.sh NAME bytes                             bytes that end a has sent, by rail
#
# COMMAND finds NAME in $RAILS_NAME; it runs outside, and enters a side with
# `ip netns exec NAME-a` or `NAME-b`. Rail I is interface rI with 10.77.I.1 in a and 10.77.I.2 in b.
# RAIL counts from 0; RATE is what tc reads, 1gbit when not given. Neither side has a default route
# or an uplink: nothing leaves them. `with` also removes what a killed run has left.
set -eu
PATH=$PATH:/usr/sbin:/sbin
PREFIX=tentrails
SELF=$(readlink -f "$0")

if [ "$(id -u)" != 0 ]; then
  echo "rails.sh makes network namespaces: run it as root." >&2
  exit 1
fi

shape() { # namespace device rate
  ip netns exec "$1" tc qdisc replace dev "$2" root tbf rate "$3" burst 256kb latency 20ms
}

remove() { # name
  for side in a b; do
    if ip netns list | grep -qw -- "$1-$side"; then ip netns del "$1-$side"; fi
  done
}

make() { # name rails rate
  for side in a b; do
    ip netns add "$1-$side"
    ip -n "$1-$side" link set lo up
    # A rail's address leaves by that rail, and no other rail answers for it.
    ip netns exec "$1-$side" sh -c 'cd /proc/sys/net/ipv4/conf/all &&
      echo 2 > arp_announce && echo 1 > arp_ignore && echo 0 > rp_filter'
  done
  for i in $(seq 0 $(($2 - 1))); do
    ip -n "$1-a" link add "r$i" type veth peer name "r$i" netns "$1-b"
    ip -n "$1-a" addr add "10.77.$i.1/24" dev "r$i"
    ip -n "$1-b" addr add "10.77.$i.2/24" dev "r$i"
    for side in a b; do
      ip -n "$1-$side" link set "r$i" up
      shape "$1-$side" "r$i" "$3"
    done
    echo "$3" > "/run/$1.r$i"
  done
}

forget() { # name
  remove "$1"
  rm -f "/run/$1".r*
}

sweep() { # what runs left that could not clean up
  for space in $(ip netns list | awk '{print $1}' | grep "^$PREFIX-[0-9]*-a$" || true); do
    pid=${space#"$PREFIX"-}
    if [ ! -d "/proc/${pid%-a}" ]; then forget "${space%-a}"; fi
  done
}

rails=4 rate=1gbit
options() {
  while getopts "+n:r:" option; do
    case $option in n) rails=$OPTARG ;; r) rate=$OPTARG ;; *) exit 2 ;; esac
  done
}

case "${1:-}" in
with)
  shift; options "$@"; shift $((OPTIND - 1))
  sweep
  export RAILS_NAME=$PREFIX-$$
  trap 'forget "$RAILS_NAME"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  make "$RAILS_NAME" "$rails" "$rate"
  "$@" && status=0 || status=$?
  exit $status ;;
up)
  shift; options "$@"
  name=$PREFIX-up$$
  make "$name" "$rails" "$rate" || { forget "$name"; exit 1; }
  echo "$name" ;;
"$PREFIX"-*)
  name=$1 verb=${2:-} rail=${3:-0}
  case "$verb" in
  down) forget "$name" ;;
  rate) for side in a b; do shape "$name-$side" "r$rail" "$4"; done ;;
  cut) ip -n "$name-a" link set "r$rail" down ;;
  mend) ip -n "$name-a" link set "r$rail" up ;;
  drop) for side in a b; do
      ip netns exec "$name-$side" tc qdisc replace dev "r$rail" root blackhole
    done ;;
  undrop) for side in a b; do shape "$name-$side" "r$rail" "$(cat "/run/$name.r$rail")"; done ;;
  reset) for side in a b; do
      ip netns exec "$name-$side" ss --no-header --tcp -K state established src "10.77.$rail.0/24" > /dev/null
    done ;;
  bytes)
    for device in $(ip netns exec "$name-a" ls /sys/class/net | grep '^r[0-9]'); do
      ip netns exec "$name-a" cat "/sys/class/net/$device/statistics/tx_bytes"
    done | paste -sd' ' ;;
  *) sed -n '2,17s/^# \{0,1\}//p' "$SELF" >&2; exit 2 ;;
  esac ;;
*)
  sed -n '2,17s/^# \{0,1\}//p' "$SELF" >&2
  exit 2 ;;
esac
