#!/usr/bin/env bash
# Figure 8: ablation.
# bash multirun_scripts/figure8.sh scale=mini|paper [setting=value ...]
source "$(dirname "$0")/common.sh"
sweeps figure8 figure8 -- "$@"
