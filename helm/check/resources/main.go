// Holds the resources of Kubernetes' extensions against their own types, unknown and mistyped fields included, and prints the others,
// which have schemas elsewhere: resources MANIFESTS
package main

import (
	"fmt"
	"os"
	"regexp"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"
)

var extensions = map[string]func() any{
	"monitoring.coreos.com/v1/ServiceMonitor": func() any { return new(monitoring.ServiceMonitor) },
	"monitoring.coreos.com/v1/PrometheusRule": func() any { return new(monitoring.PrometheusRule) },
	"gateway.networking.k8s.io/v1/HTTPRoute":  func() any { return new(gateway.HTTPRoute) },
}

var separator = regexp.MustCompile(`(?m)^---\n`)

func main() {
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		fail(err)
	}
	for _, document := range separator.Split(string(text), -1) {
		var head struct{ APIVersion, Kind string }
		if err := yaml.Unmarshal([]byte(document), &head); err != nil {
			fail(err)
		}
		kind := head.APIVersion + "/" + head.Kind
		if of, is := extensions[kind]; is {
			if err := yaml.UnmarshalStrict([]byte(document), of()); err != nil {
				fail(fmt.Errorf("%s: %w", kind, err))
			}
		} else if head.Kind != "" {
			fmt.Print("---\n", document)
		}
	}
}

func fail(err error) {
	fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[1], err)
	os.Exit(1)
}
