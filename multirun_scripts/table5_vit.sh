#!/usr/bin/env bash
# Table 5, ViTs: the five algorithms without a split, beside those of Table 2.
# bash multirun_scripts/table5_vit.sh scale=mini|paper [setting=value ...]
source "$(dirname "$0")/common.sh"
sweeps table5_vit table5_vit table5_vit_moon table2_vit table2_vit_moon -- "$@"
