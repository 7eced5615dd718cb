#!/usr/bin/env bash
# Figure 25: robustness of SCAFFOLD.
# bash multirun_scripts/figure25.sh scale=mini|paper [setting=value ...]
source "$(dirname "$0")/common.sh"
sweeps figure25 figure25_batch figure25_noise -- "$@"
