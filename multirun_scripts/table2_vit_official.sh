#!/usr/bin/env bash
# Table 2, ViTs, with the published code's index files, which it reads from fix_distribution/ or $INCO_OFFICIAL_PARTITIONS.
# bash multirun_scripts/table2_vit_official.sh scale=mini|paper [setting=value ...]
source "$(dirname "$0")/common.sh"
sweeps table2_vit_official table2_vit_official table2_vit_official_moon -- "$@"
