#!/usr/bin/env bash
# Table 1, the case study with ViTs; its runs are those of Figures 1b, 12 to 14 and 18 as well.
# bash multirun_scripts/table1_vit.sh scale=mini|paper [setting=value ...]
source "$(dirname "$0")/common.sh"
sweeps table1_vit table1_vit_iid_homo table1_vit_noniid_homo table1_vit_noniid_hetero -- "$@"
