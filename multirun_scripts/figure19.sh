#!/usr/bin/env bash
# Figure 19: CKA with ViTs.
# bash multirun_scripts/figure19.sh scale=mini|paper [setting=value ...]
source "$(dirname "$0")/common.sh"
sweeps figure19 figure19 figure19_fedavg -- "$@"
