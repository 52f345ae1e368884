package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"time"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cluster"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	t := time.Now()
	var err error
	switch os.Args[1] {
	case "build":
		err = cluster.Build(ctx, os.Stderr)
	case "up":
		o := cluster.Options{Log: os.Stderr}
		if len(os.Args) > 2 {
			o.GPUs, _ = strconv.Atoi(os.Args[2])
		}
		var i cluster.Info
		i, err = cluster.Up(ctx, o)
		fmt.Printf("%+v\n", i)
	case "down":
		err = cluster.Down(ctx, os.Stderr)
	}
	fmt.Println(time.Since(t), err)
	if err != nil {
		os.Exit(1)
	}
}
