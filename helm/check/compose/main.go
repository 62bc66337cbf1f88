// Holds a compose file against the Compose specification, unknown keys included: compose FILE
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	options, err := cli.NewProjectOptions(os.Args[1:], cli.WithName("check"), cli.WithoutEnvironmentResolution)
	if err == nil {
		project, loadErr := options.LoadProject(context.Background())
		if err = loadErr; err == nil {
			for _, service := range project.Services {
				for _, volume := range service.Volumes {
					// What is mounted has to be there: an engine would make a directory of that name.
					if _, missing := os.Stat(volume.Source); volume.Type == "bind" && missing != nil {
						err = fmt.Errorf("%s: %s: no such file", service.Name, filepath.Base(volume.Source))
					}
				}
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
