#!/usr/bin/env bash
# Table 2, ViTs: five algorithms with and without InCo.
# bash multirun_scripts/table2_vit.sh scale=mini|paper [setting=value ...]
source "$(dirname "$0")/common.sh"
sweeps table2_vit table2_vit table2_vit_moon -- "$@"
