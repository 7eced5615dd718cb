#!/usr/bin/env bash
# Table 2, ResNets, with the published code's index files, which it reads from fix_distribution/ or $INCO_OFFICIAL_PARTITIONS.
# bash multirun_scripts/table2_official.sh scale=mini|paper [setting=value ...]
source "$(dirname "$0")/common.sh"
sweeps table2_official table2_resnet_official table2_resnet_official_moon -- "$@"
