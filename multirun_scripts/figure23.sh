#!/usr/bin/env bash
# Figure 23: ablation on SCAFFOLD.
# bash multirun_scripts/figure23.sh scale=mini|paper [setting=value ...]
source "$(dirname "$0")/common.sh"
sweeps figure23 figure23 -- "$@"
