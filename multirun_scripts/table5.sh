#!/usr/bin/env bash
# Table 5, ResNets: the five algorithms without a split, beside those of Table 2.
# bash multirun_scripts/table5.sh scale=mini|paper [setting=value ...]
source "$(dirname "$0")/common.sh"
sweeps table5 table5_resnet table5_resnet_moon table2_resnet table2_resnet_moon -- "$@"
