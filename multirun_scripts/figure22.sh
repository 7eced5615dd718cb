#!/usr/bin/env bash
# Figure 22: ablation on FedNova.
# bash multirun_scripts/figure22.sh scale=mini|paper [setting=value ...]
source "$(dirname "$0")/common.sh"
sweeps figure22 figure22 -- "$@"
