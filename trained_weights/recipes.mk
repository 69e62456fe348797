# How each bundle here was made: make weights NAME=camvid-tiny DATA=DIR BACKBONE=NPZ
# DATA is the data set's folder, BACKBONE the ImageNet weights: MobileNetV2's for camvid, MobileNetV1's for nuclei;
# streets-multi takes MobileNetV2's and no data: its streets are generated.
# camvid-tiny-standard starts from the adaptive bundle and needs none. Hours on a CPU; a command that was stopped goes
# on where it was. Runs lie in runs/, the bundle is written to trained_weights/NAME; edit its README by hand.
# make mechanism [PARENT=BUNDLE]   does the gate follow a difficulty that is known? On drawn streets, half of them bare;
# half an hour on two cores.
# make compare-tasks BACKBONE= [STEPS=3000 SEPARATE_STEPS=1000]   several tasks on one encoder against separate networks
# and fixed widths

EXPORT = $(TEST)/bin/python -m model_export
RUN = runs/$(NAME)
PROVENANCE = $(addprefix --provenance ,$(wildcard trained_weights/$(NAME)/provenance.json))

.PHONY: mechanism weights $(addprefix weights-, camvid-tiny camvid-tiny-standard nuclei-tiny nuclei-tiny-standard \
  streets-multi)
weights: $(TEST)/.ready weights-$(NAME)

# Once for long; twice from there on a larger canvas, with larger crops and with the shorter sequences drawn more often;
# from the mean of the two twice more, with still larger crops and the dev stretches among them, at last on a canvas
# that CamVid's frames fill; each of these two runs in the mean with what it started from.
CAMVID = --data "$(DATA)" --scenes 0.15
CAMVID_FIRST = $(CAMVID) --train camvid:train --dev camvid:dev
CAMVID_LARGER = $(CAMVID_FIRST) --canvases 448x576 --check-every 200
CAMVID_ALL = $(CAMVID) --train camvid:train+dev --dev camvid:gate --balance 0.5 --lr 3e-4
CAMVID_CROPS = $(CAMVID_ALL) --check-every 200 --crop 384x480
CAMVID_FULL = $(CAMVID_ALL) --check-every 300 --canvases 480x640 --crop 416x544 --steps 1200 --seed 1
# With several canvases the ends of what tokens and width can do are enough.
weights-camvid-tiny: KNOBS = --keeps 1,0.25 --widths 1,0.25
weights-camvid-tiny:
	$(EXPORT) train-exits --out $(RUN)-1 $(CAMVID_FIRST) --backbone mobilenet_v2 --backbone-weights "$(BACKBONE)" \
	  --schedule 3,2,1 --steps 8000 --check-every 500 --lr 3e-4
	$(EXPORT) train-exits --out $(RUN)-2 $(CAMVID_LARGER) --start-from $(RUN)-1 --crop 320x416 --steps 2400 --lr 2e-4
	$(EXPORT) train-exits --out $(RUN)-3 $(CAMVID_LARGER) --start-from $(RUN)-1 --balance 0.5 --steps 3400 --lr 3e-4
	$(EXPORT) average $(RUN)-2 $(RUN)-3 --out $(RUN)-4
	$(EXPORT) train-exits --out $(RUN)-5 $(CAMVID_CROPS) --start-from $(RUN)-4 --steps 2000
	$(EXPORT) average $(RUN)-5 $(RUN)-4 --out $(RUN)-6
	$(EXPORT) train-exits --out $(RUN)-7 $(CAMVID_FULL) --start-from $(RUN)-6
	$(EXPORT) average $(RUN)-7 $(RUN)-6 --out $(RUN) --canvases 192x256 288x384 384x512 480x640 576x768
	$(camvid-bundle)

# What camvid-tiny is compared with starts from it, so that it has seen all that it has and more: the backbone's, the
# decoder's and the layers' weights fit, but for attention to scales that the adaptive layers do not see.
weights-camvid-tiny-standard:
	$(EXPORT) train-exits --out $(RUN)-1 $(CAMVID_LARGER) --start-from trained_weights/camvid-tiny --partly \
	  --config standard --backbone mobilenet_v2 --balance 0.5 --steps 2300 --lr 3e-4
	$(EXPORT) train-exits --out $(RUN)-2 $(CAMVID_CROPS) --start-from $(RUN)-1 --steps 1000
	$(EXPORT) average $(RUN)-2 $(RUN)-1 --out $(RUN)-3
	$(EXPORT) train-exits --out $(RUN)-4 $(CAMVID_FULL) --start-from $(RUN)-3
	$(EXPORT) average $(RUN)-4 $(RUN)-3 --out $(RUN)
	$(camvid-bundle)

define camvid-bundle
$(EXPORT) search-plans $(RUN) --data "$(DATA)" --on camvid:gate $(KNOBS)
$(EXPORT) derive-targets $(RUN) --data "$(DATA)" --fit camvid:gate scenes:80:3 camvid:dev --held camvid:val
$(EXPORT) train-gate $(RUN) --block 3
$(EXPORT) export $(RUN) -o trained_weights/$(NAME) --data "$(DATA)" --parity camvid:gate $(PROVENANCE)
endef

# Four times, on larger canvases; from the second on with a finer loss that minds the gaps between nuclei, at last with
# the rarer kinds drawn more often; then the mean of the last two. It has PRO-SCALE's schedule 2,2,2. From there the
# adaptive network and the standard one are trained alike: with the losses of all exits alike, with those of deeper ones
# counting more, and the bundle is the mean of the two.
NUCLEI = --data "$(DATA)" --train nuclei:train --dev nuclei:dev --queries 3 --crop 256x256 --zoom 0.7 1.5 --turn
NUCLEI_FINE = --pixel-stride 2 --gap-weight 5
BASE = runs/nuclei-base
.PHONY: nuclei-base
nuclei-base:
	$(EXPORT) train-exits --out $(BASE)-1 $(NUCLEI) --check-every 400 --backbone-weights "$(BACKBONE)" --canvases 448x448 \
	  --steps 2400 --lr 4e-4
	$(EXPORT) train-exits --out $(BASE)-2 $(NUCLEI) --check-every 400 --start-from $(BASE)-1 --canvases 512x512 --steps 3200 \
	  --lr 3e-4 $(NUCLEI_FINE)
	$(EXPORT) train-exits --out $(BASE)-3 $(NUCLEI) --check-every 400 --start-from $(BASE)-2 --canvases 640x640 --steps 800 \
	  --lr 1.5e-4 $(NUCLEI_FINE)
	$(EXPORT) train-exits --out $(BASE)-4 $(NUCLEI) --check-every 400 --start-from $(BASE)-3 --canvases 704x704 --steps 1200 \
	  --lr 2e-4 $(NUCLEI_FINE) --zoom 0.6 1.5 --balance 0.5
	$(EXPORT) average $(BASE)-3 $(BASE)-4 --out $(BASE)

NUCLEI_LAST = $(NUCLEI) --start-from $(BASE) --partly --canvases 640x640 --steps 2600 --lr 3e-4 $(NUCLEI_FINE) \
  --check-every 200
weights-nuclei-tiny: ENCODER = --schedule 1,1,4 --pause-after 2
weights-nuclei-tiny: CANVASES = --canvases 256x256,224x288 320x320,288x352 448x448,384x512 544x544,480x608 640x640,544x736
weights-nuclei-tiny: KNOBS = --keeps 1,0.25 --widths 1,0.25 --tiles 2x2:448x448 --tiles-on nuclei:gate+dev
weights-nuclei-tiny-standard: ENCODER = --config standard
weights-nuclei-tiny weights-nuclei-tiny-standard: nuclei-base
	$(EXPORT) train-exits --out $(RUN)-1 $(NUCLEI_LAST) $(ENCODER)
	$(EXPORT) train-exits --out $(RUN)-2 $(NUCLEI_LAST) $(ENCODER) --exit-weight linear
	$(EXPORT) average $(RUN)-1 $(RUN)-2 --out $(RUN) $(CANVASES)
	$(nuclei-bundle)

define nuclei-bundle
$(EXPORT) search-plans $(RUN) --data "$(DATA)" --on nuclei:dev $(KNOBS)
$(EXPORT) derive-targets $(RUN) --data "$(DATA)" --fit nuclei:gate nuclei:dev --held nuclei:val --views 3
$(EXPORT) train-gate $(RUN)
$(EXPORT) export $(RUN) -o trained_weights/$(NAME) --data "$(DATA)" --parity nuclei:gate $(PROVENANCE)
endef

# Three heads on one encoder, on generated streets alone; then the head of boxes by itself, and the other two.
STREETS_SCENES = --train scenes:1600:11 --cache runs/streets-scenes
STREETS = --backbone-weights "$(BACKBONE)" $(STREETS_SCENES) --dev scenes:24:12 --check-every 500
STEPS = 3000
weights-streets-multi:
	$(EXPORT) train-tasks --out $(RUN)-1 $(STREETS) --steps $(STEPS)
	$(EXPORT) train-tasks --out $(RUN)-2 --start-from $(RUN)-1 --only detection $(STREETS_SCENES) --dev scenes:8:12 \
	  --chances 1 1 2 --distill 0 --lr 4e-4 --ema 0.995 --steps 1100
	$(EXPORT) train-tasks --out $(RUN) --start-from $(RUN)-2 --only semantic depth --train scenes:3000:41 \
	  --cache runs/streets-scenes --dev scenes:24:12 --lr 5e-4 --steps 1000
	$(streets-plans)
	$(EXPORT) export $(RUN) -o trained_weights/$(NAME) --parity scenes:3:28 $(PROVENANCE)

define streets-plans
$(EXPORT) search-plans $(RUN) --on scenes:30:22 --widths 0.25 --most 8
$(EXPORT) derive-targets $(RUN) --fit scenes:120:23 --held scenes:60:24
$(EXPORT) train-gate $(RUN)
endef

# What several tasks on one encoder are worth: against a network for each task, all three together of the same cost and,
# by default, of as many steps in all; and against one whose widths are fixed.
COMPARE = runs/compare-tasks
SEPARATE = --sampling full --canvases 96x128 --steps $(SEPARATE_STEPS)
SEPARATE_STEPS = 1000
.PHONY: compare-tasks
compare-tasks: $(TEST)/.ready
	$(EXPORT) train-tasks --out $(COMPARE)-adaptive $(STREETS) --steps $(STEPS)
	$(EXPORT) train-tasks --out $(COMPARE)-fixed $(STREETS) --steps $(STEPS) --sampling full
	$(EXPORT) train-tasks --out $(COMPARE)-semantic $(STREETS) $(SEPARATE) --heads semantic
	$(EXPORT) train-tasks --out $(COMPARE)-detection $(STREETS) $(SEPARATE) --heads detection
	$(EXPORT) train-tasks --out $(COMPARE)-depth $(STREETS) $(SEPARATE) --heads depth
	$(EXPORT) search-plans $(COMPARE)-adaptive --on scenes:30:22 --widths 0.25 --most 8
	$(EXPORT) compare-tasks $(COMPARE)-adaptive --on scenes:100:31 --fixed $(COMPARE)-fixed --separate \
	  $(COMPARE)-semantic $(COMPARE)-detection $(COMPARE)-depth --figures $(COMPARE)-figures

PARENT = trained_weights/camvid-tiny
SCENES = runs/scenes
drawn = test -f $(1)/meta.json || { rm -rf $(1) && $(EXPORT) draw-scenes $(1) --bare 0.5 --count $(2) --seed $(3); }
mechanism: $(TEST)/.ready
	$(call drawn,$(SCENES)-train,1000,21)
	$(call drawn,$(SCENES)-judge,200,26)
	$(EXPORT) train-exits --out $(SCENES) --start-from $(PARENT) --data $(SCENES)-train --train folder \
	  --dev scenes:20:3 --canvases 384x480 --steps 800 --check-every 400 --lr 2e-4
	$(EXPORT) search-plans $(SCENES) --on scenes:60:22:0.5 --keeps 0.25,1 --widths 1 --most 6
	$(EXPORT) derive-targets $(SCENES) --fit scenes:240:23:0.5 --held scenes:120:24:0.5 --views 1
	$(EXPORT) train-gate $(SCENES)
	$(EXPORT) export $(SCENES) -o $(SCENES)/bundle --parity scenes:8:25
	$(EXPORT) evaluate $(SCENES)/bundle --data $(SCENES)-judge --mirrored --cache $(SCENES)/cache
