#!/usr/bin/env bash
# Figure 7: robustness against batch size and noise.
# bash multirun_scripts/figure7.sh scale=mini|paper [setting=value ...]
source "$(dirname "$0")/common.sh"
sweeps figure7 figure7_batch figure7_noise -- "$@"
