#!/usr/bin/env bash
# Figure 24: robustness of FedProx.
# bash multirun_scripts/figure24.sh scale=mini|paper [setting=value ...]
source "$(dirname "$0")/common.sh"
sweeps figure24 figure24_batch figure24_noise -- "$@"
