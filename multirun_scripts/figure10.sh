#!/usr/bin/env bash
# Figures 9d to f and 10: CKA, and accuracy by capacity.
# bash multirun_scripts/figure10.sh scale=mini|paper [setting=value ...]
source "$(dirname "$0")/common.sh"
sweeps figure10 figure10 figure10_fedavg -- "$@"
