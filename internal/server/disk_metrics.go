package server

import (
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/sandbox"
	"github.com/cri-engine/cri-engine/internal/stats"
)

// disk is the filesystem of a container's writable layer: what the layer uses
// (counted earlier, in the background) and what the filesystem has.
type disk struct {
	device                 string
	used, size             uint64 // bytes
	inodesFree, inodeCount uint64
}

func (s *Server) diskOf(c *sandbox.Container) disk {
	usage, err := s.Images.RootFSUsage(c.ID)
	if err != nil {
		return disk{}
	}
	d := disk{used: usage.UsedBytes}
	d.device, _ = stats.DeviceOf(usage.Mountpoint) // "" for a container that is being removed
	var fs unix.Statfs_t
	if unix.Statfs(usage.Mountpoint, &fs) == nil {
		d.size = fs.Blocks * uint64(fs.Bsize)
		d.inodesFree, d.inodeCount = fs.Ffree, fs.Files
	}
	return d
}

var diskMetrics = []metric[containerFigures]{
	filesystem("container_fs_usage_bytes", "Bytes that the container's writable layer uses.", func(d disk) uint64 { return d.used }),
	filesystem("container_fs_limit_bytes", "Bytes that the filesystem of the writable layer has.", func(d disk) uint64 { return d.size }),
	filesystem("container_fs_inodes_free", "Inodes that the filesystem of the writable layer has left.", func(d disk) uint64 { return d.inodesFree }),
	filesystem("container_fs_inodes_total", "Inodes that the filesystem of the writable layer has.", func(d disk) uint64 { return d.inodeCount }),
	perDevice("container_fs_reads_bytes_total", "Cumulative count of bytes read.", func(d stats.Device) uint64 { return d.ReadBytes }),
	perDevice("container_fs_reads_total", "Cumulative count of reads completed.", func(d stats.Device) uint64 { return d.Reads }),
	perDevice("container_fs_writes_bytes_total", "Cumulative count of bytes written.", func(d stats.Device) uint64 { return d.WriteBytes }),
	perDevice("container_fs_writes_total", "Cumulative count of writes completed.", func(d stats.Device) uint64 { return d.Writes }),
	{"container_blkio_device_usage_total", "Cumulative count of bytes that were read from and written to a device.", counter,
		[]string{"device", "major", "minor", "operation"}, func(f containerFigures) []sample {
			var list []sample
			for _, d := range devices(f) {
				list = append(list,
					sample{[]string{d.Name, decimal(d.Major), decimal(d.Minor), "Read"}, d.ReadBytes},
					sample{[]string{d.Name, decimal(d.Major), decimal(d.Minor), "Write"}, d.WriteBytes})
			}
			return list
		}},
}

// devices has one without a name where nothing was done to any: the sum is right.
func devices(f containerFigures) []stats.Device {
	if len(f.Devices) == 0 {
		return []stats.Device{{}}
	}
	return f.Devices
}

func filesystem(name, help string, of func(disk) uint64) metric[containerFigures] {
	return metric[containerFigures]{name, help, runtimeapi.MetricType_GAUGE, []string{"device"}, func(f containerFigures) []sample {
		return []sample{{[]string{f.disk.device}, of(f.disk)}}
	}}
}

func perDevice(name, help string, of func(stats.Device) uint64) metric[containerFigures] {
	return metric[containerFigures]{name, help, counter, []string{"device"}, func(f containerFigures) []sample {
		var list []sample
		for _, d := range devices(f) {
			list = append(list, sample{[]string{d.Name}, of(d)})
		}
		return list
	}}
}
