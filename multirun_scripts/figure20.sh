#!/usr/bin/env bash
# Figure 20: InCo against noise on the same layers.
# bash multirun_scripts/figure20.sh scale=mini|paper [setting=value ...]
source "$(dirname "$0")/common.sh"
sweeps figure20 figure20 -- "$@"
