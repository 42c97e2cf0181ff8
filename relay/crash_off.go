//go:build !crashpoints

package relay

func crash(string) {}

func crashTorn(*wire) {}
