#!/bin/bash
@directives
@setup
cd @folder || exit 1
@commands
