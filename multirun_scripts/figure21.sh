#!/usr/bin/env bash
# Figure 21: ablation on FedProx.
# bash multirun_scripts/figure21.sh scale=mini|paper [setting=value ...]
source "$(dirname "$0")/common.sh"
sweeps figure21 figure21 -- "$@"
