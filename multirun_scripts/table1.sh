#!/usr/bin/env bash
# Table 1, the case study with ResNets; its runs are those of Figures 1 to 3, 12 and 15 to 17 as well.
# bash multirun_scripts/table1.sh scale=mini|paper [setting=value ...]
source "$(dirname "$0")/common.sh"
sweeps table1 table1_resnet_iid_homo table1_resnet_noniid_homo table1_resnet_noniid_hetero -- "$@"
