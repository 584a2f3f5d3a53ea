#!/bin/bash
# SPDX-License-Identifier: AGPL-3.0-only
# Source ROS and this workspace, load the Fast DDS profile, and run the command.
set -e
source /opt/ros/*/setup.bash
source /ros/install/setup.bash
profile=/ros/install/fusion_ros/share/fusion_ros/config/fastdds_shm.xml
# Humble to Jazzy read the first name, later distributions the second.
export FASTRTPS_DEFAULT_PROFILES_FILE="${FASTRTPS_DEFAULT_PROFILES_FILE:-$profile}"
export FASTDDS_DEFAULT_PROFILES_FILE="${FASTDDS_DEFAULT_PROFILES_FILE:-$profile}"
exec "$@"
