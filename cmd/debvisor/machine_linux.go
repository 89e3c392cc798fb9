package main

func (n *node) openMachine() error { return nil }
